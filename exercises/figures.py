"""The figures of docs/guide.md, drawn by the code that they explain.

    python -m exercises.figures unet-toy --out unet.png               each block of the 3D U-Net and of AppearNet
    python -m exercises.figures unet-sd21 --out unet.png              the same at SD2.1's size
    python -m exercises.figures noise --seed 0 --out noise.webp       Eq. 3 and 4: z_t for lambda 0 and 0.03
    python -m exercises.figures gamma --seed 0 --out gamma.webp       Sec. 4.2.2: what t = 999 still shows, and gamma
    python -m exercises.figures denoising --seed 0 --out steps.webp   z_0 as the model predicts it at each step
    python -m exercises.figures attention --seed 0 --out frames.webp  temporal attention of one pixel

The seed chooses place, size and background of "a red circle moving left", and the noise. The model is the toy model.
"""
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from appearnet import VideoModel
from data.media import SIGNED, as_clips, check_output, contact_sheet, from_pixels
from data.toyset import frame_times, render, scene_of
from evaluation.measure import find
from exercises.blocks import BLUE, FONT, INK, LARGE, ORANGE, draw_unet
from microcinema import MicroCinema, noise
from sampler import add_noise, appearance_noise, ddim, guide
from sd21 import command, weights
from sd21.files import atomic_write

TOY = Path(__file__).parents[1] / "toy"


def load(seed):
    """The toy model, a caption, and the latents z_0 [1, 4, 9, 16, 16] of its true clip."""
    cinema, scene = MicroCinema.load(TOY), scene_of("circle", "red", "moving left", seed=seed)
    frames = from_pixels(torch.from_numpy(render(scene, frame_times())))
    return cinema, scene.caption(), cinema.encode_frames(frames.permute(3, 0, 1, 2)[None])


def decode(cinema, z, shrink=1):
    """Latents [1, 4, n, h, w] -> uint8 [n, H / shrink, W / shrink, 3]."""
    return as_clips(F.avg_pool3d(cinema.decode(z), (1, shrink, shrink)))[0]


def draw_noise(seed):
    """Eq. 3 and 4 on frame 0, in which the circle is not where it is in the key frame."""
    cinema, _, z_0 = load(seed)
    ts, z_c, z_0 = torch.tensor([0, 200, 400, 600, 800, 999]), z_0[:, :, 4:5], z_0[:, :, :1]
    ab, eps_n = cinema.schedule.alpha_bar_at(ts, z_0), noise([seed], z_0.shape[1:], "figure")()
    plain, prior = (add_noise(z_0, appearance_noise(eps_n, z_c, lam), ab) for lam in (0, 0.03))      # [6, 4, 1, h, w]
    clips = [decode(cinema, z.transpose(0, 2)) for z in (plain, prior, (prior - plain) / 0.03)]
    sheet = contact_sheet(*clips, captions=[
        "lambda 0: z_t of frame 0", "lambda 0.03: z_t of frame 0, with the same eps_n",
        "the second row minus the first, over 0.03: sqrt(1 - alpha_bar) z_c, the key frame"])
    for i, t in enumerate(ts.tolist()):
        ImageDraw.Draw(sheet).text((132 * i + 10, 8), f"t = {t}", "white", LARGE, stroke_width=2, stroke_fill=INK)
    return sheet


def draw_gamma(seed):
    """Means of 20,000 z_T for lambda 0, over sqrt(alpha_bar[999]): what does each show? And sqrt(alpha_bar) over t."""
    cinema, _, z_0 = load(seed)
    roots, z_0, random = cinema.schedule.alpha_bar.sqrt().tolist(), z_0[:, :, ::4], torch.Generator().manual_seed(seed)
    starts = {"training at t = 999 still shows z_0": lambda eps_n: add_noise(z_0, eps_n, roots[999] ** 2)}
    for gamma in (0, 0.02, 0.068):
        starts[f"sampling starts with gamma {gamma}"] = partial(appearance_noise, z_c=z_0[:, :, 1:2], lam=gamma)
    clips = []
    for start in starts.values():
        draws = (start(torch.randn(1000, *z_0.shape[1:], generator=random)) for _ in range(20))
        clips.append(decode(cinema, sum(z_T.mean(0, keepdim=True) for z_T in draws) / 20 / roots[999]))
    sheet = contact_sheet(*clips, captions=[*starts])
    picture = Image.new("RGB", (sheet.width + 420, sheet.height), "white")
    picture.paste(sheet)
    draw, at = ImageDraw.Draw(picture), lambda t, root: (sheet.width + 50 + 0.34 * t, 330 - 280 * root)
    for root, t in ((0, 0), (0.25, 250), (0.5, 500), (0.75, 750), (1, 999)):
        draw.line([at(0, root), at(999, root)], "#dddddd")
        draw.text(at(-20, root), str(root), INK, FONT, anchor="rm")
        draw.text(at(t, -0.05), str(t), INK, FONT, anchor="mm")
    draw.line([at(t, root) for t, root in enumerate(roots)], BLUE, 3)
    draw.line([at(999, 0), at(999, roots[999])], ORANGE, 6)
    draw.text(at(0, 1.1), "sqrt(alpha_bar) over t: the share of z_0 in z_t", BLUE, LARGE)
    draw.text(at(0, -0.2), f"At t = 999 it is {roots[999]:.3f}, not 0.", ORANGE, LARGE)
    draw.text(at(0, -0.35), f"Left: frames 0, 4, 8. Means of 20,000 z_T,\nover {roots[999]:.3f}, decoded. lambda is 0.",
              INK, LARGE)
    return picture


def denoise(cinema, prompt, z_c, seed, steps=10):
    """Stage two, spelt out: yields t, z_t and the z_0 predicted from it [1, 4, 9, h, w], at each step of DDIM."""
    s, outputs, timesteps = cinema.settings(steps=steps), [], cinema.schedule.timesteps(steps)
    text, empty = cinema.encode_text([prompt]), cinema.encode_text([""])
    f_theta = lambda z_t, t, text: cinema.video(z_t, t, z_c.expand(len(z_t), -1, -1, -1, -1), text)

    def model(z_t, t):
        outputs.append(guide(f_theta, s.guidance, text, empty)(z_t, t))
        return outputs[-1]
    z_t = appearance_noise(noise([seed], (4, s.frames, *z_c.shape[3:]), "video")(), z_c, s.lam + s.gamma)
    for (t, ab, _), z_next in zip(timesteps, ddim(model, z_t, timesteps, cinema.schedule), strict=True):
        yield t, z_t, cinema.schedule.predict_z0_eps(outputs[-1], z_t, ab)[0]
        z_t = z_next


def draw_denoising(seed):
    """Ten steps: z_t of five frames on the left, z_0 predicted from it on the right."""
    cinema, prompt, z_0 = load(seed)
    rows = {f"t = {t}": decode(cinema, torch.cat([z_t[:, :, ::2], z[:, :, ::2]], dim=2), shrink=2)
            for t, z_t, z in denoise(cinema, prompt, z_0[:, :, 4:5], seed)}
    where = ". Left: z_t of frames 0, 2, 4, 6, 8. Right: z_0 as the model predicts it from them"
    return contact_sheet(*rows.values(), captions=[f"t = 999{where}", *list(rows)[1:]])


def shares(q, k, heads):
    """The weights of attention, softmax(q k^T / sqrt(c / heads)): q, k [..., n, c] -> [..., heads, n, n]."""
    q, k = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k))
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)


def attention_maps(cinema, prompt, z_c, seed):
    """`shares` of one layer of the decoder at t = 499, [(h w), heads, n, n], and z_0 at the end, [1, 4, 9, h, w]."""
    layer, maps = cinema.video.unet.up_blocks[1].temporal_attentions[0].attn1, []
    attend = layer.attend

    def recorded(q, k, v, heads):                                            # [b, (h w), n, c]; the last b has the text
        maps.append(shares(q[-1], k[-1], heads))
        return attend(q, k, v, heads)
    layer.attend = recorded
    *_, (_, _, z) = denoise(cinema, prompt, z_c, seed)
    layer.attend = attend
    return maps[5], z


def draw_attention(seed):
    """The attention of one pixel's nine frames, one map for each head. The circle covers the pixel in the key frame."""
    cinema, prompt, z_0 = load(seed)
    maps, z = attention_maps(cinema, prompt, z_0[:, :, 4:5], seed)
    clip, side = decode(cinema, z, shrink=2), round(len(maps) ** 0.5)
    thing, cell = find(clip[4]), clip.shape[1] // side
    x, y = int(thing["x"] * side), int(thing["y"] * side)
    picture = Image.new("RGB", (720, 394), "white")
    draw = ImageDraw.Draw(picture)
    picture.paste(contact_sheet(clip), (20, 24))
    draw.text((24, 6), f"{prompt}: frames 0 to 8, and one of {side} x {side} pixels", INK, FONT)
    for i in range(9):
        left, top = 24 + 68 * i + x * cell, 28 + y * cell
        draw.rectangle((left, top, left + cell, top + cell), outline="white", width=2)
    for head, rows in enumerate(maps[y * side + x].tolist()):
        at = lambda row, column: (40 + 230 * head + 22 * column, 142 + 24 * row)
        draw.text(at(-1.2, 0), f"head {head} (percent)", INK, LARGE)
        for i, j in [(i, j) for i in range(9) for j in range(9)]:
            (left, top), share = at(i, j), rows[i][j]
            colour = tuple(int(255 - share ** 0.5 * depth) for depth in (235, 195, 115))
            draw.rectangle((left, top, left + 21, top + 23), colour)
            draw.text((left + 11, top + 12), f"{100 * share:.0f}", "white" if share > 0.25 else INK, FONT, anchor="mm")
        for i in range(9):
            draw.text(at(i + 0.5, -0.5), str(i), BLUE, FONT, anchor="mm")
            draw.text(at(9.3, i + 0.5), str(i), BLUE, FONT, anchor="mm")
    draw.text((40, 374), "row: the frame that asks; column: the frame that it reads", BLUE, FONT)
    return picture


PIXELS = {"unet-toy": 128, "unet-sd21": 320}
DRAWN = {"noise": draw_noise, "gamma": draw_gamma, "denoising": draw_denoising, "attention": draw_attention}


@torch.inference_mode()
def draw(args):
    """Draws one figure and writes it."""
    check_output(args.out, [".png", ".webp"])
    if args.name in DRAWN:
        picture = DRAWN[args.name](args.seed)
    else:
        toy = weights.arguments(VideoModel, *weights.component("video", TOY).read())
        picture = draw_unet(toy if args.name == "unet-toy" else {}, PIXELS[args.name])
    with atomic_write(args.out) as part:
        picture.save(part, quality=90, **SIGNED)
    print(f"{args.out}: {picture.width} x {picture.height} pixels")


def main(argv=None):
    """The command line; see the top of the file. Returns the exit code."""
    parser = command.ArgumentParser("python -m exercises.figures", description="Draw a figure of docs/guide.md.")
    names = parser.add_subparsers(dest="name", required=True)
    for name in (*PIXELS, *DRAWN):
        figure = names.add_parser(name)
        figure.add_argument("--out", type=Path, required=True, help="the picture to write, .png or .webp")
        if name in DRAWN:
            figure.add_argument("--seed", type=command.seed, default=0, help="of scene and noise (0)")
    return command.run(parser.prog, draw, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
