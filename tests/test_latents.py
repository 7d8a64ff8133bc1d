"""Exercises on data/latents.py: clips that the autoencoder encoded beforehand, in memory or on disk."""
import json
import shutil
from functools import partial

import pytest
import torch
from conftest import assert_same, run
from safetensors import SafetensorError

import train
from data import latents
from data.toyset import ToySet
from microcinema import encode_video
from sd21 import files, weights
from sd21.files import write_json, write_tensors
from sd21.vae import AutoencoderKL


def write(model, out, *more):
    """`train.py latents` for the video model, of the clips that `run` trains on."""
    options = "--clips 6 --size 16 --frames 3 --batch 2 --device cpu".split()
    return train.main(["latents", "--for", "video", "--model", str(model), "--out", str(out), *options,
                       *map(str, more)])


@pytest.mark.slow
def test_training_on_latents_is_training(like, ready, tmp_path):
    """Encoded once to disk, or by the run itself: does any number in the checkpoint or the report differ?"""
    encodes, reads = ready("encodes"), ready("reads")
    assert write(reads, tmp_path / "latents") == 0
    assert run("video", like, encodes, 3) == 0
    assert run("video", like, reads, 3, "--latents", tmp_path / "latents") == 0
    assert_same(encodes, reads, "video")                                     # breaks if z_0 is not scaled, or shuffled
    tables = [[line.split(",")[2:] for line in (folder / "video.csv").read_text().splitlines()]
              for folder in (encodes, reads)]
    assert tables[0] == tables[1]                                            # the loss on the same held-out clips


@pytest.fixture
def encode(stills):
    """encode_video of a small autoencoder, and this autoencoder."""
    vae = weights.load(weights.component("vae", stills), AutoencoderKL)
    return partial(encode_video, vae), vae


def test_shards_are_one_set(encode, tmp_path):
    """Seven clips in files of three, and in memory: are z_0, captions and names the same, in any order?"""
    encode, vae = encode
    sets = [ToySet(count, frames=3, size=16, held_out=count == 2) for count in (7, 2)]
    latents.write(encode, sets, tmp_path / "a", 2, "cpu", {"frames": 3}, shard=3)
    assert len(list((tmp_path / "a").iterdir())) == 3 + 1 + 1
    for clips, disk in zip(sets, latents.read(tmp_path / "a", {"frames": 3}), strict=True):
        memory = latents.encode(encode, clips, 2, "cpu")
        assert len(disk) == len(clips) == len(memory)
        assert disk.captions == memory.captions == [item["caption"] for item in clips]
        assert disk.names == memory.names
        indices = torch.tensor([len(clips) - 1, 0, 1, 0])
        assert torch.equal(disk.rows(indices, "cpu"), memory.rows(indices, "cpu"))       # breaks if a shard is lost
        frames = clips[len(clips) - 1]["frames"].transpose(0, 1) / 127.5 - 1             # [n, 3, H, W]
        mean = vae.encode(frames)[0].transpose(0, 1) * vae.scale                         # [4, n, h, w]
        assert (disk.rows(indices, "cpu")[0] - mean).abs().max() < 0.01      # breaks if n and c are swapped


def test_a_clip_of_any_length_is_encoded(encode):
    """On a CPU nine frames are encoded at once, so clips of 1, 4 and 10 frames by nines, by twos and one by one."""
    for frames in (1, 4, 10):
        clips = ToySet(3, frames=frames, fps=4, size=16)
        alone = torch.cat([encode[0](clips[i]["frames"][None] / 127.5 - 1) for i in range(3)])
        torch.testing.assert_close(latents.encode(encode[0], clips, 2, "cpu").z[0].float(), alone, rtol=0, atol=0.01)


def test_two_processes_encode_what_one_does(encode, monkeypatch):
    """Each of two processes encodes half of five clips. Does each get all of them, in order, once?"""
    encode, _ = encode
    clips = ToySet(5, frames=3, size=16)
    alone, shares = latents.encode(encode, clips, 2, "cpu"), []

    def gather(everyone, share):                                             # the first two calls only collect shares
        shares.append(share)
        everyone[:] = shares[:2] if len(shares) > 2 else [share, share]
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    for rank in (0, 1):
        latents.encode(encode, clips, 2, "cpu", rank, 2)
    for rank in (0, 1):
        together = latents.encode(encode, clips, 2, "cpu", rank, 2)
        assert torch.equal(together.z[0], alone.z[0])                        # breaks if one share follows the other
        assert (together.captions, together.names) == (alone.captions, alone.names)


@pytest.mark.slow
def test_latents_of_other_clips_are_refused(like, ready, tmp_path, capsys):
    """Made with other frames, fps, size or autoencoder than the run asks for: one line, before any work?"""
    model = ready("model")
    assert write(model, tmp_path / "latents") == 0
    rescaled = shutil.copytree(model, tmp_path / "rescaled")
    config = files.read_json(model / "vae" / "config.json")
    files.write_json(config | {"scaling_factor": 7.0}, rescaled / "vae" / "config.json")
    for out, key, more in ((model, "frames", ("--frames", 5)), (model, "fps", ("--fps", 4)),
                           (model, "size", ("--size", 32)), (rescaled, "scale", ())):
        capsys.readouterr()
        assert run("video", like, out, 2, "--latents", tmp_path / "latents", *more) == 2
        message = capsys.readouterr().err
        assert message.startswith(f"train.py: {tmp_path / 'latents'}: {key} is ") and message.count("\n") == 1
    assert not (model / "video").exists()


def cut_by_one_byte(folder):
    file = folder / "train-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize("damage, reason", [
    (cut_by_one_byte, "train-00000.safetensors: not a shard of latents"),
    (lambda folder: (folder / "kept-out-00000.safetensors").unlink(), "has 0 of 6 clips for kept-out"),
    (lambda folder: (folder / "latents.json").unlink(), "latents.json: No such file")])
def test_half_a_folder_of_latents_is_refused(like, ready, tmp_path, capsys, damage, reason):
    """A shard that lacks its last byte, a missing shard, a folder without its index: is the reason one line?"""
    model = ready("model")
    assert write(model, tmp_path / "latents") == 0
    damage(tmp_path / "latents")
    capsys.readouterr()
    assert run("video", like, model, 2, "--latents", tmp_path / "latents") == 2
    message = capsys.readouterr().err
    assert reason in message and message.count("\n") == 1 and not (model / "video").exists()


def test_latents_are_written_to_a_new_folder(stills, tmp_path, capsys):
    """Into a folder with somebody's diary: is it refused, and is nothing in the folder changed?"""
    (tmp_path / "diary.txt").write_text("mine")
    assert write(stills, tmp_path) == 2
    message = capsys.readouterr().err
    assert "is not empty" in message and message.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]       # breaks if shards are written first


def test_a_full_disk_is_one_line_and_no_half_shard(stills, tmp_path, monkeypatch, capsys):
    """The disk fills up while the first shard is written. Which files are left?"""
    def full(tensors, path, metadata):
        path.write_bytes(b"half a shard")
        raise SafetensorError("I/O error: No space left on device")
    monkeypatch.setattr(files, "save_file", full)
    assert write(stills, tmp_path / "latents") == 2                          # breaks if only OSError is caught
    assert "cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert [path.name for path in (tmp_path / "latents").iterdir()] == ["latents.json"]


@pytest.fixture
def stopped(stills, tmp_path, monkeypatch):
    """A folder that `train.py latents` left when it was stopped in the second of its two sets."""
    def save_file_until_stopped(tensors, path, metadata):
        if "kept-out" in path.name:
            raise KeyboardInterrupt
        save_file(tensors, path, metadata=metadata)
    save_file = files.save_file
    with monkeypatch.context() as patch:
        patch.setattr(files, "save_file", save_file_until_stopped)
        assert write(stills, tmp_path / "stopped") == 130
    return tmp_path / "stopped"


def test_a_stopped_command_continues_after_the_last_complete_shard(stills, stopped, tmp_path):
    """Given again, does it leave the first shard alone, and write what a run without a stop writes?"""
    first = stopped / "train-00000.safetensors"
    written = first.stat().st_mtime_ns
    assert write(stills, stopped) == 0
    assert first.stat().st_mtime_ns == written                               # breaks if it is encoded again
    assert write(stills, tmp_path / "whole") == 0
    for one, other in zip(latents.read(tmp_path / "whole", {}), latents.read(stopped, {}), strict=True):
        assert torch.equal(one.z[0], other.z[0]) and (one.captions, one.names) == (other.captions, other.names)


def test_a_stopped_command_does_not_continue_with_another_seed(stills, stopped):
    """Given again with other clips: is it refused?"""
    assert write(stills, stopped, "--seed", 1) == 2                          # breaks if two seeds may share a folder


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_few_clips_are_not_worth_a_process(monkeypatch):
    """Eight cores: how many workers draw 6 clips, and 6000? And if torchrun runs four processes on this host?"""
    def workers(count):
        return latents.loader(ToySet(count), range(count), 2).num_workers
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert (workers(6), workers(6000)) == (0, 7)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers(6000) == 1                                                # breaks if each of four starts seven


@pytest.mark.parametrize("change", ["captions", "names", "rows", "channels", "frames", "whole numbers", "deep"])
def test_a_shard_whose_parts_do_not_fit_is_refused(tmp_path, change):
    """Captions that are no texts, fewer names than clips, other channels or frames: one line, naming the file."""
    z, texts, names = torch.zeros(2, 4, 3, 2, 2), ["a", "b"], ["x", "y"]
    z = {"rows": z[:1], "channels": z.repeat(1, 2, 1, 1, 1), "frames": z[:, :, :2],
         "whole numbers": z.int()}.get(change, z)
    captions = {"captions": "[1, 2]", "deep": "[" * 100_000}.get(change, json.dumps(texts))
    metadata = {"captions": captions, "names": json.dumps(names[:1] if change == "names" else names)}
    write_json({"frames": 3, "clips": {"train": 2, "kept-out": 2}}, tmp_path / "latents.json")
    for name in ("train", "kept-out"):
        write_tensors({"z_0": z.contiguous()}, tmp_path / f"{name}-00000.safetensors", metadata)
    with pytest.raises(ValueError, match="train-00000.safetensors: not a shard"):
        latents.read(tmp_path, {"frames": 3})
