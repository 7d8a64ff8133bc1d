"""Exercises for sd21/command.py: what does a person read if an option is wrong, or if a command fails?"""
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sd21 import command

ROOT = Path(__file__).parents[1]


# ---- options ----

@pytest.mark.parametrize("module, more", [("microcinema", "a"), ("sd21.weights", "a"), ("data.folder", "a"),
                                          ("data.filter", "a"), ("data.toyset", ""), ("train", "video --out a"),
                                          ("training.pretrain", "vae --out a"), ("evaluation.toy_scores", "")])
def test_a_command_reports_a_wrong_option_in_one_line(module, more, monkeypatch, capsys):
    """An option that does not exist. argparse alone would print its usage first, eleven lines for microcinema.py."""
    monkeypatch.setattr("sys.argv", [module, *more.split(), "--nonsense"])
    with pytest.raises(SystemExit) as stop:
        if module == "sd21.weights":
            importlib.import_module("sd21.tensor_map").main({}, None)
        else:
            importlib.import_module(module).main()
    said = capsys.readouterr().err
    name = f"python -m {module}" if "." in module else f"{module}.py"
    assert stop.value.code == 2 and said.startswith(f"{name}") and ": unrecognized arguments: " in said
    assert said.endswith("--nonsense\n") and said.count("\n") == 1          # breaks without ArgumentParser.error


@pytest.mark.parametrize("name, good, bad", [
    ("positive_int", {"1": 1, "50000": 50000}, ["0", "-1", "1.5", "x", ""]),
    ("natural", {"0": 0, "7": 7}, ["-1", "0.5", "nan"]),
    ("positive_float", {"0.5": 0.5, "2": 2.0}, ["0", "-1", "nan", "inf", "x"]),
    ("finite_float", {"-1.5": -1.5, "1e-4": 1e-4}, ["nan", "inf", "-inf", "x"]),
    ("share", {"0": 0.0, "1": 1.0, "0.3": 0.3}, ["-0.1", "1.5", "nan"]),
    ("seed", {"0": 0, "4294967295": 4294967295}, ["-1", "4294967296", "1.0"]),
    ("size", {"320": 320, "320x320": 320, "320x192": "320x192", "9999": 9999, "1x2": "1x2"},
     ["0", "-64", "10000", "32x0", "32x", "x32", "3.2", "32x16x8", "32 x 16", "wide", ""]),
    ("fps", {"0.5": 0.5, "1000": 1000.0}, ["0", "-2", "1001", "nan", "inf"]),
    ("device", {"cpu": "cpu"}, ["nonsense", "meta", "cpu:x"]),               # meta holds no numbers
    ("existing_path", {str(ROOT / "tests"): ROOT / "tests"}, [str(ROOT / "nowhere")])])
def test_an_option_is_checked_once_and_named(name, good, bad, capsys):
    """Values at the edge and beyond it: which are accepted? Is the line about the others one, and does it name both?"""
    parser = command.ArgumentParser("name.py")
    parser.add_argument("--option", type=getattr(command, name))
    for text, value in good.items():
        assert parser.parse_args(["--option", text]).option == value
    for text in bad:
        with pytest.raises(SystemExit) as stop:
            parser.parse_args([f"--option={text}"])                         # breaks if NaN < 0 is the question asked
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("name.py: argument --option: ") and said.count("\n") == 1
        assert text in said


def test_every_process_of_torchrun_tries_its_own_gpu(monkeypatch):
    """Two processes, "cuda" each. Trying "cuda" itself would take memory on GPU 0 in both of them."""
    tried = []
    monkeypatch.setattr(torch, "empty", lambda size, device: tried.append(device) or torch.zeros(size))
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert command.device("cuda") == "cuda" and command.device("cpu") == "cpu"
    assert tried == ["cuda:0", "cpu", "cuda:1", "cpu"]


# ---- errors and exit codes ----

def raises(error):
    raise error


@pytest.mark.parametrize("error, code, line", [
    (ValueError("x.gif: unknown ending"), 2, "name.py: x.gif: unknown ending\n"),
    (FileNotFoundError("x.png: there is no such picture"), 2, "name.py: x.png: there is no such picture\n"),
    (KeyboardInterrupt(), 130, "name.py: stopped; run it again\n"),
    (MemoryError(), 2, "name.py: takes more memory than there is; try less\n"),
    (torch.OutOfMemoryError("CUDA out of memory."), 2, "name.py: takes more memory than there is; try less\n"),
    (RuntimeError("Storage size calculation overflowed"), 2, "name.py: takes more memory than there is; try less\n")])
def test_an_error_is_one_line_and_an_exit_code(error, code, line, capsys):
    """What a person reads, for each kind of error."""
    assert command.run("name.py", raises, error, stopped="run it again", out_of_memory="try less") == code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("words, line", [
    ("InvalidCxxCompiler: No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')", "--compile"),
    ("Failed to find C compiler. Please specify via CC environment variable.", "--compile"),
    ("Cannot find a working triton installation.", "--compile"),
    ("unable to allocate shared memory(shm) for file </torch_7_8_9>: No space left on device (28)", "enlarge /dev/shm"),
    ("DataLoader worker is killed by signal: Bus error. It is possible that dataloader's workers are out of shared "
     "memory.", "enlarge /dev/shm")])
def test_what_a_machine_lacks_is_one_line(words, line, capsys):
    """No compiler for --compile; a container's 64 MB of shared memory. PyTorch's words are several lines long."""
    assert command.run("name.py", raises, RuntimeError(f"{words}\nmore")) == 2
    said = capsys.readouterr().err
    assert line in said and said.count("\n") == 1


def test_pytorch_on_a_cpu_says_allocate(capsys):
    """PyTorch's error for a lack of memory is a plain RuntimeError on a CPU. Is its text still recognised?"""
    assert command.run("name.py", torch.empty, 2**60) == 2                  # breaks if PyTorch changes its words
    assert capsys.readouterr().err == "name.py: takes more memory than there is\n"


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), TypeError("x"), KeyError("x")])
def test_a_bug_keeps_its_traceback(error):
    """An exception that no code raises on purpose must not become a friendly line."""
    with pytest.raises(type(error)):
        command.run("name.py", raises, error)


def test_a_function_may_return_its_own_exit_code():
    """None is success. And a function that found a problem itself?"""
    assert command.run("name.py", lambda: None) == 0 and command.run("name.py", lambda code: code, 3) == 3


@pytest.mark.skipif(os.name == "nt", reason="pipes break differently")
def test_output_that_nobody_reads_on_is_no_error():
    """`... | head -n 1`: no traceback, no complaint, exit code 0."""
    program = "import sys; from sd21.command import run; sys.exit(run('x', lambda: print(*range(10**5), sep='\\n')))"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 0              # breaks without BrokenPipeError


def test_a_letter_that_a_terminal_lacks_stops_nothing():
    """A terminal of ASCII alone, and a Chinese file name: a question mark, or an error behind a finished video?"""
    program = "from sd21 import command; raise SystemExit(command.run('x', print, '圆.gif: 9 frames'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "?.gif: 9 frames\n", "")
