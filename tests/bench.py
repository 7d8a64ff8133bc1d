"""How fast the code is, beside something to compare it with in the same run. It asserts nothing: people read timings.

    python tests/bench.py                     toy size; beside diffusers' UNet3DConditionModel where that is installed
    python tests/bench.py --sd21              SD2.1 at 320x320, 9 frames, random weights, bfloat16: for a large GPU;
                                              beside three networks of diffusers where that is installed
    python tests/bench.py --sd21 --more       also whole videos by microcinema.py, and the largest batch that trains
    torchrun --nproc-per-node 2 tests/bench.py --sd21        a training step on one card, by DDP, by FSDP2

Each cell: milliseconds (the median), and the share of the ceiling: floating-point operations as PyTorch counts them,
beside the speed of a large matrix product of the same dtype on the same machine, measured a moment before.
"""

import argparse
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch import distributed
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1]))
import train
from appearnet import VideoModel
from microcinema import MicroCinema
from sampler import NoiseSchedule
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


def training_step(model, z_0, text, device="cuda", f_theta=VideoModel.forward, **options):
    """One step of training/loop.py on random latents: Eq. 5, clipping, AdamW, bfloat16 over float32. Returns a function
    to call. f_theta(model, z_t, t, z^c, text) is the network."""
    run = loop.Run("bench", Path("bench"), batch=len(z_0), device=device, bf16=True, **options)
    schedule, text, rows = NoiseSchedule().to(device), text.bfloat16(), len(z_0)

    def load(_, random):
        t = torch.randint(0, 1000, (rows,), generator=random, device=device)
        return z_0, t, torch.randn(z_0.shape, generator=random, device=device)

    def loss_of(z_0, t, eps_n):
        return train.loss(partial(f_theta, model), z_0, z_0[:, :, 4:5], text[:len(z_0)], t, eps_n, schedule)

    stage = loop.Stage(model, train.parameter_groups(model), pick=lambda step, random: None, load=load, loss_of=loss_of,
                       names=None, save=None, units=sharding_units)
    train_step = loop.make_train_step(stage, TrainState(stage, run), run)
    return lambda: train_step(0)


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
    print(f"largest batch that trains, of 1, 2, 4, ...{name}: {fits}, {peak:.1f} GiB (next: {reason})", flush=True)


def sd21_inputs(device):
    """z_t [2, 4, 9, 40, 40], t, condition and text of a guided call at 320 x 320."""
    with torch.device(device):
        z = torch.randn(2, 4, 9, 40, 40)
        return z, torch.tensor([981, 981]), z[:, :, 4:5], torch.randn(2, 77, 1024)


def recorded(call):
    """The call as one CUDA graph."""
    call()                                                                   # torch.cuda.graph waits for it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def networks():
    """{name: (a function that makes the network, its f_theta(network, z_t, t, z^c, text), classes to compile)}: ours
    and, where diffusers is installed, three of its networks at their published sizes."""
    found = {"ours, U-Net and AppearNet": (
        VideoModel, lambda net, z_t, t, z_c, text: net(z_t, t, z_c, text), COMPILED)}
    try:
        from diffusers import I2VGenXLUNet, UNet2DConditionModel, UNet3DConditionModel
        from diffusers.models.attention import BasicTransformerBlock
        from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
    except ImportError:
        print("diffusers is not installed: nothing to compare with")
        return found
    sizes, blocks = dict(cross_attention_dim=1024), (BasicTransformerBlock, ResnetBlock2D, TemporalConvLayer)

    def image_to_video(net, z_t, t, z_c, text):
        fps, condition = torch.full_like(t, 2), z_c.expand_as(z_t)
        return net(z_t, t, fps, condition, text[:, 0], text, return_dict=False)[0]

    def frame_by_frame(net, z_t, t, z_c, text):
        n = z_t.shape[2]
        frames, steps, texts = z_t.transpose(1, 2).flatten(0, 1), t.repeat_interleave(n), text.repeat_interleave(n, 0)
        return net(frames, steps, texts, return_dict=False)[0].unflatten(0, (-1, n)).transpose(1, 2)
    found["diffusers' I2VGenXLUNet"] = (lambda: I2VGenXLUNet(**sizes), image_to_video, blocks)
    found["diffusers' UNet3DConditionModel"] = (
        lambda: UNet3DConditionModel(**sizes),
        lambda net, z_t, t, z_c, text: net(z_t, t, text, return_dict=False)[0], blocks)
    found["diffusers' 2D U-Net of SD2.1, on 9 frames"] = (
        lambda: UNet2DConditionModel(**sizes, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True),
        frame_by_frame, blocks)
    return found


def finished(network):
    """The network without its zero layers, as after training: gradients behind them are zero, and a GPU multiplies
    zeros faster."""
    for p in network.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.02)
    return network


COLUMNS = "call, eager", "call, one graph", "step, eager", "call, compiled, one graph", "step, compiled, one graph"


def sd21_table(device, best):
    """Prints the table: each network's guided call and training step, eager, and compiled by blocks in one CUDA graph.
    The last lines have the ratios of the shares of the ceiling: ours to each of the others. First everything that is
    not compiled, since compiling takes minutes; each number is also printed when it is there."""
    z_t, t, condition, text = sd21_inputs(device)
    half = [x.bfloat16() for x in (z_t, condition, text)]
    made_by = networks()
    counts, took, shares = {}, {name: {} for name in made_by}, {name: {} for name in made_by}

    def network(make, blocks):
        torch.cuda.empty_cache()
        with torch.device(device):                                           # compile outside: inside, torch.compile
            net = finished(make())                                           # breaks the model into pieces
        if blocks:
            loop.compile_blocks(net, blocks)
        return net

    def add(name, column, call):
        took[name][column] = seconds(call, device)
        shares[name][column] = counts[name, column.split(",")[0]] / took[name][column] / best
        print(f"{name}, {column}: {cell(name, column)}", flush=True)

    def cell(name, column):
        return f"{1000 * took[name][column]:.1f} ms, {100 * shares[name][column]:.1f} %"

    for compiled in ("", "compiled, "):
        for name, (make, f_theta, blocks) in made_by.items():
            net = network(make, compiled and blocks).bfloat16().eval()
            call = partial(f_theta, net, half[0], t, half[1], half[2])
            with torch.inference_mode():
                if not compiled:
                    counts[name, "call"] = operations(call)
                    add(name, "call, eager", call)
                add(name, f"call, {compiled}one graph", recorded(call))
            del net, call
            step = training_step(network(make, compiled and blocks), z_t, text, device, f_theta, compile=bool(compiled))
            if not compiled:
                counts[name, "step"] = operations(step)
            add(name, "step, compiled, one graph" if compiled else "step, eager", step)
            del step
    print(f"| | TFLOP a call | {' | '.join(COLUMNS)} |\n|{' --- |' * (len(COLUMNS) + 2)}")
    for name in made_by:
        print(f"| {name} | {counts[name, 'call'] / 1e12:.2f} | {' | '.join(cell(name, c) for c in COLUMNS)} |")
    ours, *others = shares
    for other in others:
        ratios = [f"{column} {shares[ours][column] / shares[other][column]:.2f}" for column in COLUMNS]
        print(f"ours / {other}, shares of the ceiling: {'; '.join(ratios)}")


def sd21_videos(device):
    """Whole videos by microcinema.py: from text to pixels, recorded (as the command does), then compiled as well."""
    with torch.device(device):
        vae, text_encoder = AutoencoderKL().bfloat16().eval(), TextEncoder().bfloat16().eval()
        unet = UNet3D(temporal=False).bfloat16().eval()
        video = VideoModel.grow(unet).eval()
    tokenizer = lambda texts: torch.zeros(len(texts), 77, dtype=torch.long)  # any ids take the same time
    cinema = MicroCinema(tokenizer, text_encoder, vae, unet, video, NoiseSchedule(), progress=False)
    picture = torch.zeros(1, 3, 320, 320)
    for name in ("recorded", "compiled and recorded"):
        if name != "recorded":
            cinema.compile()
        for stage, call in (("key frame", lambda: cinema.key_frame(["a"])),
                            ("video", lambda: cinema.animate(["a"], picture))):
            call()                                                           # compiles
            print(f"{stage}, 50 steps, {name}: {seconds(call, device, 3):.2f} s", flush=True)


def sd21_training(device, best, batch=8):
    """A compiled step of a larger batch, a step with gradient checkpointing, and the largest batch that trains."""
    z, _, _, text = sd21_inputs(device)
    many, texts = z[:1].repeat(batch, 1, 1, 1, 1), text[:1].repeat(batch, 1, 1)
    try:
        count = batch / 2 * operations(training_step(video_model(), z, text, device))
        model = video_model(partial(loop.compile_blocks, blocks=COMPILED))
        row(f"one training step, batch {batch}, compiled, one graph",
            training_step(model, many, texts, device, compile=True), device, best, count)
        del model
    except torch.OutOfMemoryError as error:
        print(f"batch {batch}, compiled: {str(error)[:100]}")
    step = training_step(video_model(checkpoint_blocks), z, text, device)
    row("one training step, batch 2, eager, gradient checkpointing", step, device, best)
    del step
    largest_batch(z, text)
    largest_batch(z, text, checkpoint_blocks)


def sd21_processes(device, each):
    """Under torchrun: clips a second and memory a card, of one card, then of all cards with DDP and with FSDP2."""
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


def sd21(device, each, more):
    """Everything at SD2.1's size."""
    if "RANK" in os.environ:
        return sd21_processes(device, each)
    torch.backends.cudnn.benchmark = True
    best = ceiling(device, torch.bfloat16)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: ceiling {best / 1e12:.0f} TFLOP/s in bfloat16")
    sd21_table(device, best)
    if more:
        sd21_videos(device)
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
    parser.add_argument("--more", action="store_true", help="also whole videos and the largest batch")
    args = parser.parse_args()
    if (args.sd21 and args.device != "cuda") or (args.more and not args.sd21):
        parser.error("--sd21 needs a GPU (--device cuda); --more needs --sd21")
    sd21(args.device, args.each, args.more) if args.sd21 else toy(args.device)


if __name__ == "__main__":
    main()
