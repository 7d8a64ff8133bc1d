"""How fast it is, with what to compare it to in the same run. No assertion: timings are for people to read.

    python tests/bench.py                     toy size; beside diffusers' UNet3DConditionModel where that is installed
    python tests/bench.py --sd21              SD2.1 at 320x320, 9 frames, random weights, bfloat16: for a large GPU

Each row: milliseconds (the median), floating-point operations as PyTorch counts them, and the share of the ceiling,
which is what a large matrix product of the same dtype reaches on the same machine a moment before.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
import weights
from appearnet import VideoModel
from clip import TextEncoder
from microcinema import Sampling, appearance_noise
from sampler import NoiseSchedule, ddim, guide
from unet3d import UNet3D
from vae import AutoencoderKL

TOY = Path(__file__).parents[1] / "toy"


def seconds(call, device, repeat=10):
    """The median time of a call, after three that do not count."""
    times = []
    for _ in range(3 + repeat):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[3:])


def operations(call):
    """Floating-point operations of a call; a multiplication and an addition are two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def ceiling(device, dtype):
    """Operations a second of a square matrix product: what this machine can do at all."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / seconds(lambda: a @ b, device)


def row(name, call, device, best, count=None, repeat=10):
    """Measures one call and prints its row; returns its seconds."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    count = count or operations(call)
    took = seconds(call, device, repeat)
    memory = f"  {torch.cuda.max_memory_allocated() / 2**30:6.1f} GiB" if device == "cuda" else ""
    share = f"{100 * count / took / best:5.1f} % of the ceiling"
    print(f"{name:58} {1000 * took:9.1f} ms {count / 1e12:8.3f} TFLOP {share}{memory}", flush=True)
    return took


def training_step(model, batch, device):
    """Eq. 5 and AdamW on random latents of the size that `batch` has: (z_0, text)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-6, fused=device == "cuda")
    schedule, (z_0, text) = NoiseSchedule(), batch
    schedule.alpha_bar = schedule.alpha_bar.to(device)
    t = torch.randint(0, 1000, (len(z_0),), device=device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            train.loss(model, z_0, z_0[:, :, 4:5], text, t, torch.randn_like(z_0), schedule).backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def largest_batch(model, z_0, text, device):
    """Doubles the batch of a training step until memory is full; prints the last that fits."""
    batch, fits = 1, 0
    while True:
        try:
            training_step(model, (z_0.repeat(batch, 1, 1, 1, 1), text.repeat(batch, 1, 1)), device)()
        except torch.cuda.OutOfMemoryError:
            break
        fits, batch = batch, 2 * batch
        model.zero_grad()
        torch.cuda.empty_cache()
    model.zero_grad(set_to_none=True)
    torch.cuda.empty_cache()
    print(f"largest batch that trains (powers of two): {fits}", flush=True)


def sd21_inputs(device):
    """z_t [2, 4, 9, 40, 40], t, condition and text of a guided call at 320 x 320."""
    with torch.device(device):
        z = torch.randn(2, 4, 9, 40, 40)
        return z, torch.tensor([981, 981]), z[:, :, 4:5], torch.randn(2, 77, 1024)


def sd21_sampling(device, best, dtype=torch.bfloat16):
    """(a) a guided call, and (d) a whole video, eager and compiled."""
    with torch.device(device):
        model = VideoModel.grow(UNet3D(temporal=False)).to(dtype).eval()
        vae, text_encoder = AutoencoderKL().to(dtype).eval(), TextEncoder().to(dtype).eval()
        ids = torch.zeros(2, 77, dtype=torch.long)
    inputs = [x.to(dtype) if x.is_floating_point() else x for x in sd21_inputs(device)]
    schedule, s = NoiseSchedule(), Sampling()

    def video():
        empty, words = text_encoder(ids).chunk(2)
        z_c = torch.randn(1, 4, 1, 40, 40, device=device)
        f_theta = lambda z_t, t, text: model(z_t.to(dtype), t, z_c.to(dtype).expand(2, -1, -1, -1, -1), text).float()
        z_T = appearance_noise(torch.randn(1, 4, 9, 40, 40, device=device), z_c, s.lam + s.gamma)
        *_, z_0 = ddim(guide(f_theta, s.guidance, words, empty), z_T, schedule.path(s.steps), schedule)
        return vae.decode(z_0[0].transpose(0, 1).to(dtype) / 0.18215)

    with torch.inference_mode():
        count, whole = operations(lambda: model(*inputs)), operations(video)
        for how in ("eager", "compiled"):
            row(f"(a) one guided call, batch 2, {how}", lambda: model(*inputs), device, best, count)
            row(f"(d) a whole video, 50 steps, text to pixels, {how}", video, device, best, whole, repeat=1)
            train.compile_blocks(model)


def sd21_training(device, best):
    """(b) a training step, eager, with gradient checkpointing, compiled, and (c) the largest batch."""
    z, _, _, text = sd21_inputs(device)
    count = None
    for how, change in (("eager", None), ("with gradient checkpointing", train.checkpoint_blocks),
                        ("compiled", train.compile_blocks)):
        with torch.device(device):
            model = VideoModel()
        if change:
            change(model)
        step = training_step(model, (z, text), device)
        count = count or operations(step)
        row(f"(b) one training step, batch 2, {how}", step, device, best, count)
        if how != "compiled":
            largest_batch(model, z[:1], text[:1], device)
        del model, step
        torch.cuda.empty_cache()


def sd21(device):
    """Everything at SD2.1's size."""
    best = ceiling(device, torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: ceiling {best / 1e12:.0f} TFLOP/s in bfloat16")
    sd21_sampling(device, best)
    sd21_training(device, best)


def toy(device):
    """The toy model's guided call; its U-Net alone beside diffusers' of the same widths."""
    best, model = ceiling(device, torch.float32), weights.load_video(TOY).to(device)
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
        config = weights.read_json(TOY / "unet" / "config.json")
        theirs = UNet3DConditionModel(
            block_out_channels=config["block_out_channels"], layers_per_block=config["layers_per_block"],
            down_block_types=["CrossAttnDownBlock3D", "CrossAttnDownBlock3D", "DownBlock3D"],
            up_block_types=["UpBlock3D", "CrossAttnUpBlock3D", "CrossAttnUpBlock3D"], norm_num_groups=8,
            cross_attention_dim=128, attention_head_dim=16).to(device).eval()
        other = row("diffusers' UNet3DConditionModel", lambda: theirs(z, t, text), device, best)
    print(f"ratio {other / ours:.2f}")


def main():
    """Runs one of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sd21", action="store_true", help="SD2.1's size, on a GPU of 80 GB or more")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    sd21(args.device) if args.sd21 else toy(args.device)


if __name__ == "__main__":
    main()
