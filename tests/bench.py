"""How fast the code is, beside something to compare it with in the same run. It asserts nothing: people read timings.

    python tests/bench.py                     toy size; beside diffusers' UNet3DConditionModel where that is installed
    python tests/bench.py --sd21              SD2.1 at 320x320, 9 frames, random weights, bfloat16: for a large GPU
    torchrun --nproc-per-node 2 tests/bench.py --sd21        a training step on one card, by DDP, by FSDP2

Each row: milliseconds (the median), floating-point operations as PyTorch counts them, and the share of the ceiling.
The ceiling is the speed of a large matrix product of the same dtype on the same machine, measured a moment before.
"""

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
from appearnet import VideoModel
from microcinema import Sampling
from sampler import NoiseSchedule, appearance_noise, ddim, guide
from sd21 import weights
from sd21.files import read_json
from sd21.text import TextEncoder
from sd21.vae import AutoencoderKL
from training import loop
from training.prepare import COMPILED, RECOMPUTED, sharding_units
from training.state import TrainState
from unet3d import UNet3D

TOY = Path(__file__).parents[1] / "toy"


def seconds(call, device, repeat=10):
    """The median time of a call, after up to three calls that do not count."""
    times, warm = [], min(3, repeat)
    for _ in range(warm + repeat):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm:])


def operations(call):
    """Floating-point operations of a call; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def ceiling(device, dtype):
    """Operations a second of a large square matrix product."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def row(name, call, device, best, count=None, repeat=10):
    """Measures one call and prints its row; returns its seconds. The memory is the peak since the model was made, since
    a graph takes its memory when it is recorded."""
    count = count or operations(call)
    took = seconds(call, device, repeat)
    memory = f"  {torch.cuda.max_memory_allocated() / 2**30:6.1f} GiB" if device == "cuda" else ""
    share = f"{100 * count / took / best:5.1f} % of the ceiling"
    print(f"{name:79} {1000 * took:9.1f} ms {count / 1e12:8.3f} TFLOP {share}{memory}", flush=True)
    return took


def training_step(model, z_0, text, device="cuda", **options):
    """One step of training/loop.py on random latents: Eq. 5, clipping, AdamW, bfloat16 over float32. Returns a function
    to call."""
    run = loop.Run("bench", Path("bench"), batch=len(z_0), device=device, bf16=True, **options)
    schedule, text, rows = NoiseSchedule().to(device), text.bfloat16(), len(z_0)

    def load(_, random):
        t = torch.randint(0, 1000, (rows,), generator=random, device=device)
        return z_0, t, torch.randn(z_0.shape, generator=random, device=device)

    def loss_of(z_0, t, eps_n):
        return train.loss(model, z_0, z_0[:, :, 4:5], text[:len(z_0)], t, eps_n, schedule)

    stage = loop.Stage(model, train.parameter_groups(model), pick=lambda step, random: None, load=load, loss_of=loss_of,
                       names=None, save=None, units=sharding_units)
    train_step = loop.make_train_step(stage, TrainState(stage, run), run)
    return lambda: train_step(0)


def compile_blocks(model):
    """The model, compiled block by block."""
    loop.compile_blocks(model, COMPILED)


def checkpoint_blocks(model):
    """The model with gradient checkpointing."""
    loop.checkpoint_blocks(model, RECOMPUTED)


def video_model(change=None):
    """SD2.1's video model with random weights, on the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        model = VideoModel()
    if change:
        change(model)
    return model


def largest_batch(z_0, text, change=None):
    """Doubles the batch of a training step until memory is full. Prints the last batch that fits."""
    batch, fits, peak, model = 1, 0, 0, video_model(change)
    while True:
        torch.cuda.reset_peak_memory_stats()
        try:
            step = training_step(model.float(), z_0[:1].repeat(batch, 1, 1, 1, 1), text[:1].repeat(batch, 1, 1))
            step(), step()
        except RuntimeError as error:                                        # out of memory, or too large for cuDNN
            reason = str(error).splitlines()[0][:80]
            break
        fits, peak = batch, torch.cuda.max_memory_allocated() / 2**30
        batch, step = 2 * batch, None
        model.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
    name = f", {change.__name__}" if change else ""
    print(f"(c) largest batch that trains, of 1, 2, 4, ...{name}: {fits}, {peak:.1f} GiB (next: {reason})", flush=True)


def sd21_inputs(device):
    """z_t [2, 4, 9, 40, 40], t, condition and text of a guided call at 320 x 320."""
    with torch.device(device):
        z = torch.randn(2, 4, 9, 40, 40)
        return z, torch.tensor([981, 981]), z[:, :, 4:5], torch.randn(2, 77, 1024)


def recorded(call):
    """The call as one CUDA graph."""
    call(), torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    return lambda: (graph.replay(), output)[1]


def compile_whole(model):
    """torch.compile of the whole model at once, its weights as constants: it fuses more, and takes minutes longer."""
    model.compile(dynamic=False, options={"freezing": True})


def sd21_sampling(device, best, dtype=torch.bfloat16):
    """(a) a guided call, and (d) a whole video: eager, compiled, and compiled and recorded."""
    with torch.device(device):
        vae, text_encoder = AutoencoderKL().to(dtype).eval(), TextEncoder().to(dtype).eval()
        ids = torch.zeros(2, 77, dtype=torch.long)
    z_t, t, condition, text = (x.to(dtype) if x.is_floating_point() else x for x in sd21_inputs(device))
    schedule, s, counts = NoiseSchedule(), Sampling(), {}

    def video(call):
        empty, words = text_encoder(ids).chunk(2)
        z_c = torch.randn(1, 4, 1, 40, 40, device=device)

        def f_theta(z, steps, both):
            for old, new in ((z_t, z), (t, steps), (condition, z_c.expand(2, -1, -1, -1, -1)), (text, both)):
                old.copy_(new)
            return call().float()
        z_T = appearance_noise(torch.randn(1, 4, 9, 40, 40, device=device), z_c, s.lam + s.gamma)
        *_, z_0 = ddim(guide(f_theta, s.guidance, words, empty), z_T, schedule.timesteps(s.steps), schedule)
        return vae.decode(z_0[0].transpose(0, 1).to(dtype) / 0.18215)

    for name, change, graph in (("eager", None, False), ("eager, one CUDA graph", None, True),
                                ("compiled by blocks", compile_blocks, False),
                                ("compiled by blocks, one CUDA graph", compile_blocks, True),
                                ("compiled whole, weights as constants, one CUDA graph", compile_whole, True)):
        torch.cuda.reset_peak_memory_stats()
        with torch.device(device):                                           # compile outside: it would split the model
            model = VideoModel.grow(UNet3D(temporal=False)).to(dtype).eval()
        with torch.no_grad():
            call = lambda: model(z_t, t, condition, text)
            counts = counts or {"call": operations(call), "video": operations(lambda: video(call))}
            if change:
                change(model)
            if graph:
                call = recorded(call)
            row(f"(a) guided call, batch 2, {name}", call, device, best, counts["call"])
            row(f"(d) video, 50 steps, {name}", lambda: video(call), device, best, counts["video"], repeat=1)
            del model, call                                                  # else its memory counts in the next row


def sd21_training(device, best):
    """(b) a training step, eager, with gradient checkpointing, compiled, and (c) the largest batch."""
    z, _, _, text = sd21_inputs(device)
    count = None
    for name, change, options in (("eager", None, {}), ("eager, gradient checkpointing", checkpoint_blocks, {}),
                                  ("compiled by blocks", compile_blocks, {}),
                                  ("compiled by blocks, one CUDA graph", compile_blocks, {"cuda_graph": True})):
        step = training_step(video_model(change), z, text, device, **options)
        count = count or operations(step)
        row(f"(b) one training step, batch 2, {name}", step, device, best, count)
        if not step().isfinite():                                            # after a dozen steps
            print("    but its loss is not finite: that was no training")
        del step
    largest_batch(z, text)
    largest_batch(z, text, checkpoint_blocks)


def sd21_processes(device, each):
    """Under torchrun: one card alone, then all cards with DDP and with FSDP2, `each` clips a card. Prints clips a
    second and memory a card."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    z, _, _, text = sd21_inputs(device)
    z, text = z[:1].repeat(each * world, 1, 1, 1, 1), text[:1].repeat(each * world, 1, 1)
    alone = None
    for name, options in (("one card", {}), ("DDP", {}), ("FSDP2", {"fsdp": True})):
        if name == "DDP":                                                    # until now each process was on its own
            distributed.init_process_group("nccl")
        clips = each * (1 if name == "one card" else world)
        step = training_step(video_model(), z[:clips], text[:clips], device, **options)
        torch.cuda.reset_peak_memory_stats()
        if distributed.is_initialized():
            distributed.barrier()
        rate = clips / seconds(step, device)
        alone = alone or rate
        if rank == 0:
            print(f"{name:9} {clips} clips a step: {1000 * clips / rate:7.1f} ms, {rate:6.2f} clips a second, "
                  f"{rate / alone:.2f} times one card, {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB", flush=True)
        del step
    distributed.destroy_process_group()


def sd21(device, each):
    """Everything at SD2.1's size."""
    if "RANK" in os.environ:
        return sd21_processes(device, each)
    torch.backends.cudnn.benchmark = True
    best = ceiling(device, torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: ceiling {best / 1e12:.0f} TFLOP/s in bfloat16")
    sd21_sampling(device, best)
    sd21_training(device, best)


def toy(device):
    """The toy model's guided call; its U-Net alone beside diffusers' of the same widths."""
    best, model = ceiling(device, torch.float32), weights.load(weights.component("video", TOY), VideoModel).to(device)
    z, text = torch.randn(2, 4, 9, 16, 16, device=device), torch.randn(2, 77, 128, device=device)
    t = torch.tensor([500, 500], device=device)
    print(f"{device}, torch {torch.__version__}: ceiling {best / 1e12:.2f} TFLOP/s in float32")
    with torch.inference_mode():
        row("one guided call, U-Net and AppearNet", lambda: model(z, t, z[:, :, 4:5], text), device, best)
        ours = row("its U-Net alone", lambda: model.unet(z, t, text), device, best)
        try:
            from diffusers import UNet3DConditionModel
        except ImportError:
            print("diffusers is not installed: nothing to compare with")
            return
        config = read_json(TOY / "unet" / "config.json")
        theirs = UNet3DConditionModel(
            block_out_channels=config["block_out_channels"], layers_per_block=config["layers_per_block"],
            down_block_types=["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
            up_block_types=["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"], norm_num_groups=8,
            cross_attention_dim=128, attention_head_dim=16).to(device).eval()
        other = row("diffusers' UNet3DConditionModel", lambda: theirs(z, t, text), device, best)
    print(f"ratio {other / ours:.2f}")


def main():
    """Runs the toy benchmark or the one at SD2.1's size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd21", action="store_true", help="SD2.1's size, on a GPU of 80 GB or more")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--each", type=int, default=4, help="clips a card, under torchrun")
    args = parser.parse_args()
    sd21(args.device, args.each) if args.sd21 else toy(args.device)


if __name__ == "__main__":
    main()
