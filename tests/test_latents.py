"""Exercises for latents.py: clips that went through the autoencoder beforehand, in memory or on disk."""
import shutil

import pytest
import torch
from conftest import assert_same, run
from safetensors import SafetensorError

import latents
import train
import weights
from data import ToySet


def write(model, out, *more):
    """`train.py latents` for the video model, of the clips that the runs here train on."""
    how = "--clips 6 --size 16 --frames 3 --batch 2 --device cpu".split()
    return train.main(["latents", "--for", "video", "--model", str(model), "--out", str(out), *how, *map(str, more)])


def test_training_on_latents_is_training(like, ready, tmp_path):
    """Encoded once to disk, or by the run itself: does any number of its checkpoint, or its report, tell which?"""
    encodes, reads = ready("encodes"), ready("reads")
    assert write(reads, tmp_path / "latents") == 0
    assert run("video", like, encodes, 3) == 0
    assert run("video", like, reads, 3, "--latents", tmp_path / "latents") == 0
    assert_same(encodes, reads, "video")                                     # breaks if z_0 is not scaled, or shuffled
    tables = [[line.split(",")[2:] for line in (folder / "video.csv").read_text().splitlines()]
              for folder in (encodes, reads)]
    assert tables[0] == tables[1]                                            # loss on clips kept out: the same ones


def test_shards_are_one_set(stills, tmp_path):
    """Seven clips in files of three, and in memory: the same z_0, captions and names, whatever is asked for?"""
    args = train.parse(["latents", "--for", "video", "--out", str(tmp_path / "a"), "--batch", "2", "--device", "cpu"])
    args.rank, args.world = 0, 1
    vae, scale = weights.load_vae(stills)
    sets = [ToySet(count, frames=3, size=16, held_out=count == 2) for count in (7, 2)]
    latents.write(vae, scale, sets, args, {"frames": 3}, shard=3)
    assert len(list(args.out.iterdir())) == 3 + 1 + 1
    for clips, found in zip(sets, latents.read(args.out, {"frames": 3}), strict=True):
        memory = latents.encode(vae, scale, clips, args)
        assert len(found) == len(clips) == len(memory)
        assert found.captions == memory.captions == [item["caption"] for item in clips]
        assert found.names == memory.names
        pick = torch.tensor([len(clips) - 1, 0, 1, 0])
        assert torch.equal(found.rows(pick, "cpu"), memory.rows(pick, "cpu"))            # breaks if a shard is lost
        frames = clips[len(clips) - 1]["frames"].transpose(0, 1) / 127.5 - 1
        mean = vae.encode(frames)[0].transpose(0, 1) * scale                 # [4, n, h, w]
        assert (found.rows(pick, "cpu")[0] - mean).abs().max() < 0.01        # breaks if n and c change places


def test_latents_of_other_clips_are_refused(like, ready, tmp_path, capsys):
    """Made for other frames, another rate, size or autoencoder than the run asks for: one line, before any work."""
    model = ready("model")
    assert write(model, tmp_path / "latents") == 0
    rescaled = shutil.copytree(model, tmp_path / "rescaled")
    weights.write_json(weights.read_json(model / "vae" / "config.json") | {"scaling_factor": 7.0},
                       rescaled / "vae" / "config.json")
    for out, key, more in ((model, "frames", ("--frames", 5)), (model, "fps", ("--fps", 4)),
                           (model, "size", ("--size", 32)), (rescaled, "scale", ())):
        capsys.readouterr()
        assert run("video", like, out, 2, "--latents", tmp_path / "latents", *more) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"train.py: {tmp_path / 'latents'}: {key} is ") and said.count("\n") == 1
    assert not (model / "video").exists()


@pytest.mark.parametrize("break_it, says", [
    (lambda folder: (folder / "train-00000.safetensors").write_bytes(
        (folder / "train-00000.safetensors").read_bytes()[:-1]), "train-00000.safetensors: not a shard of latents"),
    (lambda folder: (folder / "kept-out-00000.safetensors").unlink(), "has 0 of 6 clips for kept-out"),
    (lambda folder: (folder / "latents.json").unlink(), "latents.json: No such file")])
def test_half_a_folder_of_latents_is_refused(like, ready, tmp_path, capsys, break_it, says):
    """A shard cut short by one byte, a shard that is not there, a folder that was never finished."""
    model = ready("model")
    assert write(model, tmp_path / "latents") == 0
    break_it(tmp_path / "latents")
    capsys.readouterr()
    assert run("video", like, model, 2, "--latents", tmp_path / "latents") == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1 and not (model / "video").exists()


def test_latents_are_written_to_a_new_folder(stills, tmp_path, capsys):
    """Into somebody's folder: refused, and nothing in it has changed."""
    (tmp_path / "diary.txt").write_text("mine")
    assert write(stills, tmp_path) == 2
    said = capsys.readouterr().err
    assert "is not empty" in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]       # breaks if shards come first


def test_a_full_disk_is_one_line_and_no_half_shard(stills, tmp_path, monkeypatch, capsys):
    """The disk is full while the first shard is written."""
    def full(tensors, path, metadata):
        path.write_bytes(b"half a shard")
        raise SafetensorError("I/O error: No space left on device")
    monkeypatch.setattr(weights, "save_file", full)
    assert write(stills, tmp_path / "latents") == 2                          # breaks if only OSError is caught
    assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "latents").iterdir()] == ["latents.json"]


def test_a_stopped_command_goes_on_behind_the_last_whole_shard(stills, tmp_path, monkeypatch):
    """Stopped in the second of two sets, then given again: the same clips as of a whole run, the first not touched? And
    with another seed: refused."""
    save = weights.save_file

    def stopped(tensors, path, metadata):
        if "kept-out" in path.name:
            raise KeyboardInterrupt
        save(tensors, path, metadata=metadata)
    assert write(stills, tmp_path / "whole") == 0
    monkeypatch.setattr(weights, "save_file", stopped)
    assert write(stills, tmp_path / "stopped") == 130
    first = tmp_path / "stopped" / "train-00000.safetensors"
    written = first.stat().st_mtime_ns
    monkeypatch.setattr(weights, "save_file", save)
    assert write(stills, tmp_path / "stopped", "--seed", 1) == 2             # breaks if two seeds may share a folder
    assert write(stills, tmp_path / "stopped") == 0
    assert first.stat().st_mtime_ns == written                               # breaks if it is encoded again
    for one, other in zip(*(latents.read(tmp_path / name, {}) for name in ("whole", "stopped")), strict=True):
        assert torch.equal(one.z[0], other.z[0]) and (one.captions, one.names) == (other.captions, other.names)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_few_clips_are_not_worth_a_process(monkeypatch):
    """Eight cores: how many other processes draw 6 clips, and 6000? And when torchrun has four of ours on this host?"""
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    workers = lambda count: latents.loader(ToySet(count), range(count), 2).num_workers
    assert (workers(6), workers(6000)) == (0, 7)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers(6000) == 1                                                # breaks if each of four starts seven
