"""Fig. 2 from the live modules: each block of the 3D U-Net and of AppearNet with its output's shape and its parameters.

defines  blocks, the numbers; draw_unet, the picture. `python -m exercises.figures unet-toy` writes it."""
import math
import re

import torch
from PIL import Image, ImageDraw, ImageFont

from appearnet import VideoModel, is_new

INK, ORANGE, GREEN, BLUE = "#303038", "#d9730d", "#1f8a4c", "#7080a0"
FILLS = {"resnets": "#dbe7f6", "attentions": "#ead9f2", "samplers": "#f4ecd0", "": "#e8e8e8"}
FONT, LARGE = ImageFont.load_default(size=12), ImageFont.load_default(size=15)
LEFT, CENTRE, RIGHT, WIDTH, HEIGHT, STEP = 10, 298, 586, 234, 34, 40        # of the three columns, and of a block


def block_of(name):
    """The block of a module or parameter of a VideoModel, such as "unet.conv_in", or None. A temporal layer belongs to
    the block of the spatial layer before it."""
    name = re.sub(r"temporal_(attentions|conv_in|conv_out)", r"\1", name).replace("conv_norm_out", "conv_out")
    match = re.match(r"(unet|appearnet)\.((down|up)_blocks\.\d+\.\w+\.\d+|(?!down|up)\w+)", name)
    return match and match[0]


def blocks(model, size, n=9):
    """{block: [shape of its output, parameters from SD2.1, new parameters]} of a VideoModel on `meta`, in the order in
    which one clip of n frames meets them. Its latents are size x size. The projectors have no one shape: None."""
    found, hooks = {}, []

    def record(block, output):
        found.setdefault(block, [None, 0, 0])[0] = None if "projectors" in block else list(output.shape)
    for name, module in model.named_modules():
        if block := block_of(name):
            hooks.append(module.register_forward_hook(lambda m, x, output, block=block: record(block, output)))
    z_t, t = torch.empty(1, 4, n, size, size, device="meta"), torch.zeros(1, device="meta")
    model(z_t, t, z_t, torch.empty(1, 77, model.unet.config.cross_attention_dim, device="meta"))
    for hook in hooks:
        hook.remove()
    for name, p in model.named_parameters():
        found[block_of(name)][2 if is_new(name) else 1] += p.numel()
    return found


def bands(unet, names):
    """(encoder blocks, decoder blocks) for each skip that the decoder reads, both listed from top to bottom."""
    encoder, decoder = [[]], []
    for name in unet.channels:
        if name.startswith(("conv_in", "down")):
            encoder[-1].append(name)
        if name in unet.skips:
            encoder.append([])
    for name in names:
        if name.startswith("unet.up") and "resnets" in name:                 # each decoder ResBlock reads one skip
            decoder.append([])
        if name.startswith(("unet.up", "unet.conv_out")):
            decoder[-1].insert(0, name.removeprefix("unet."))
    return list(zip(encoder[:-1], reversed(decoder), strict=True))


def place_blocks(rows):
    """({block: (x, y) of its corner}, [(top, bottom) of each band]): the columns are encoder, AppearNet and decoder."""
    places, areas, y = {}, [], 196
    for block, corner in (("unet.time_embedding", (LEFT, 116)), ("appearnet.time_embedding", (CENTRE, 116)),
                          ("appearnet.zero_conv", (CENTRE, 156)), ("appearnet.projectors", (RIGHT, 116))):
        places[block] = corner
    for encoder, decoder in rows:
        bottom = y + STEP * max(len(encoder), len(decoder))
        areas.append((y, bottom))
        for i, name in enumerate(encoder):
            places |= {f"unet.{name}": (LEFT, y + STEP * i), f"appearnet.{name}": (CENTRE, y + STEP * i)}
        for i, name in enumerate(reversed(decoder)):
            places[f"unet.{name}"] = (RIGHT, bottom - STEP * (i + 1))
        y = bottom + 8
    return places | {"appearnet.mid_block": (CENTRE, y), "unet.mid_block": (CENTRE, y + 60)}, areas


def arrow(draw, points, colour):
    """A line through the points, with a head at its end."""
    (x, y), (x_end, y_end) = points[-2:]
    angle = math.atan2(y_end - y, x_end - x)
    sides = [(x_end - 9 * math.cos(angle + side), y_end - 9 * math.sin(angle + side)) for side in (0.4, -0.4)]
    draw.line(points, colour, 2)
    draw.polygon([points[-1], *sides], colour)


def short(number):
    """12345678 -> "12.3 M"."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k" if number >= 1e3 else str(number)


def draw_unet(config, pixels):
    """The picture of a VideoModel with this config, for clips of 9 frames of pixels x pixels: an arrow for each route
    of AppearNet. The model is made on `meta`, where tensors take no memory."""
    with torch.device("meta"):
        model = VideoModel(**config)
    found, routes = blocks(model, pixels // 8), model.appearnet.routes
    places, areas = place_blocks(bands(model.unet, found))
    picture = Image.new("RGB", (830, places["unet.mid_block"][1] + 44), "white")
    draw = ImageDraw.Draw(picture)
    total = sum(old + new for _, old, new in found.values())
    for i, (text, colour) in enumerate([
            (f"{total:,} parameters. One clip of 9 frames of {pixels} x {pixels} pixels", INK),
            ("In a block: shape of its output [(b n), c, h, w]; parameters that SD2.1 has + new ones", INK),
            ("AppearNet's feature becomes gamma_a and beta_a of the second temporal norm (Eq. 1-2)", ORANGE),
            ("AppearNet's feature is added", GREEN),
            ("Skips: in a grey band, the decoder's ResBlock also reads the lowest block of the encoder", BLUE)]):
        draw.text((LEFT, 4 + 17 * i), text, colour, FONT)
    for x, text in ((LEFT, "U-Net: encoder, downwards"), (CENTRE, "AppearNet"), (RIGHT, "U-Net: decoder, upwards")):
        draw.text((x, 94), text, INK, LARGE)
    for top, bottom in areas:
        draw.rectangle((4, top - 4, 826, bottom - 3), "#f3f3f1")
    for block, (x, y) in places.items():
        shape, old, new = found[block]
        fill = next(colour for word, colour in FILLS.items() if word in block)
        edge = GREEN if block.startswith("appearnet") else BLUE
        draw.rounded_rectangle((x, y, x + WIDTH, y + HEIGHT), 5, fill, edge, 2)
        draw.text((x + 7, y + 2), block if "mid" in block else block.partition(".")[2], INK, FONT)
        draw.text((x + 7, y + 18), str(shape or f"the {len(routes)} arrows"), INK, FONT)
        draw.text((x + WIDTH - 7, y + 18), f"{short(old)} + {short(new)}", INK, FONT, anchor="ra")
    for to, f_a in routes:
        (x, y), (x_a, y_a) = places["unet." + to.removesuffix(".temporal_conv2.norm")], places["appearnet." + f_a]
        ends = {LEFT: [(x_a, y_a + 17), (x + WIDTH, y + 17)], RIGHT: [(x_a + WIDTH, y_a + 17), (x, y + 17)],
                CENTRE: [(x + 117, y_a + HEIGHT), (x + 117, y)]}
        arrow(draw, ends[x], ORANGE if to.endswith(".norm") else GREEN)
    y, bottom = places["unet.mid_block"][1] + 17, areas[-1][1] - 6
    arrow(draw, [(LEFT + 117, bottom), (LEFT + 117, y), (CENTRE, y)], BLUE)
    arrow(draw, [(CENTRE + WIDTH, y), (RIGHT + 117, y), (RIGHT + 117, bottom)], BLUE)
    return picture.quantize(64)                                              # a third of the bytes
