"""Appearance injection: Sec. 3.2, Fig. 3, Eq. 1-2, Table 2.

in    z_t and condition [b, 4, n, h, w] (z_c repeated n times in the base model, Sec. 3.1), t [b], text [b, l, d]
out   AppearNet: {name: what to inject}, for `injections` of unet3d.UNet3D; VideoModel: eps, the shape of z_t
defines  group_norm_3d (Eq. 1), spade (Eq. 2), AppearNet, routes and INJECTIONS (the four rows of Table 2),
      VideoModel (f_theta of Eq. 5: U-Net and AppearNet together), is_new

our reading
      - The input is z_t + ZeroConv(condition), as in Fig. 2. The text of Sec. 3.2 names the condition alone.
      - SPADE replaces the norm of the *second temporal layer* of each encoder and decoder ResBlock (Fig. 3). "The
        GroupNorm layers of the U-Net" (Sec. 4.2.1) could also mean SD's own norms, whose learned scale would be lost.
      - "Projector" is undefined. Before gamma_a and beta_a: a 1x1x1 convolution and SiLU with a random start; for the
        added features: one zero convolution. A second zero layer in either chain would stop its gradient for ever.
      - The decoder's features go where ControlNet's go (Zhang et al. 2023), see `routes`.
"""

from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from sd21.kernels import group_norm
from unet3d import Encoder, UNet3D, UNetConfig, ZeroConv2d, fold, unfold

INJECTIONS = ("concat", "add_dec", "add_encdec", "add_encdec_spade")        # Table 2, top to bottom; last: MicroCinema

# One of these words is in the name of every tensor that the paper adds, and in no other. Three places read the list:
# the learning rates (train.py), the fresh start of new layers (VideoModel.grow), the map's column (sd21/tensor_map.py).
NEW = ("temporal", "zero_conv", "projectors")


def is_new(name):
    """True if the paper adds the tensor of this name to SD2.1, False if it comes from SD2.1."""
    return any(word in name for word in NEW)


def group_norm_3d(h_m, groups, eps=1e-5):
    """Eq. 1: h_bar = (h_m - mu) / sigma, mu and sigma over (c / groups, n, h, w) of h_m [b, c, n, h, w]."""
    return group_norm(h_m, groups, eps=eps)                                  # F.group_norm, see sd21/kernels.py


def spade(h_bar, gamma_a, beta_a):
    """Eq. 2, element by element, all [b, c, n, h, w]. The paper calls the result sigma, like Eq. 1's deviation."""
    return (gamma_a + 1) * h_bar + beta_a


def denormalise(h_m, gamma_a, beta_a, groups):
    """Fig. 3, the norm of the second temporal layer: Eq. 1, then Eq. 2."""
    return spade(group_norm_3d(h_m, groups), gamma_a, beta_a)


def routes(unet, inject):
    """Which feature of AppearNet goes where: [(name in the U-Net, name in AppearNet)] for a row of Table 2.

    Encoder: each ResBlock and attention takes the feature of its own twin. Decoder block i reads one skip of the
    U-Net's encoder and takes AppearNet's feature of the same name. AppearNet's middle output is added to the U-Net's
    middle output, which the first decoder ResBlock reads. Nothing is injected inside the middle (Fig. 2)."""
    resnets = [name for name in unet.channels if name.startswith("down_blocks") and "resnets" in name]
    attentions = [name for name in unet.channels if name.startswith("down_blocks") and "attentions" in name]
    decoder = list(zip(unet.decoder, reversed(unet.skips), strict=True))
    middle = [("mid_block", "mid_block")]
    to_skips = [(f"{resnet}.skip", skip) for (resnet, _), skip in decoder]
    if inject == "concat":
        return []
    if inject == "add_dec":
        return to_skips + middle
    if inject == "add_encdec":
        return [(name, name) for name in resnets + attentions] + to_skips + middle
    spaded = [(f"{name}.temporal_conv2.norm", name) for name in resnets]
    spaded += [(f"{resnet}.temporal_conv2.norm", skip) for (resnet, _), skip in decoder]
    added = [(name, name) for name in attentions]
    added += [(attention, skip) for (_, attention), skip in decoder if attention]
    return spaded + added + middle


class Spade(nn.Module):
    """Fig. 3, right to left: f_a -> Projector -> two 1x1x1 convolutions -> gamma_a, beta_a, which start at zero.

    Returns the function that replaces the norm in the U-Net. f_a [(b n), c_a, h, w]."""

    def __init__(self, c_a, c, groups):
        super().__init__()
        self.groups = groups
        self.projector = nn.Conv2d(c_a, c, 1)
        self.gamma = ZeroConv2d(c, c, 1)
        self.beta = ZeroConv2d(c, c, 1)

    def forward(self, f_a, n):
        f_a = F.silu(self.projector(f_a))                                    # [(b n), c, h, w]
        return partial(denormalise, gamma_a=unfold(self.gamma(f_a), n), beta_a=unfold(self.beta(f_a), n),
                       groups=self.groups)


class AppearNet(Encoder):
    """A trainable copy of the U-Net's encoder and middle, temporal layers included, and a projector for each route.

    `unet` is the U-Net to inject into: the constructor reads its names and channels, and does not keep it."""

    def __init__(self, unet, inject="add_encdec_spade", **config):
        super().__init__(**config)
        self.zero_conv = ZeroConv2d(4, 4, 1)                                 # on latents, before conv_in
        self.routes = routes(unet, inject)
        self.projectors = nn.ModuleDict()
        for to, source in self.routes:
            c_a = self.channels[source]
            if to.endswith(".norm"):
                c = unet.channels[to.removesuffix(".temporal_conv2.norm")]
                projector = Spade(c_a, c, self.config.norm_num_groups)
            elif to.endswith(".skip"):                                       # a skip has its feature's channels
                projector = ZeroConv2d(c_a, c_a, 1)
            else:
                projector = ZeroConv2d(c_a, unet.channels[to], 1)
            self.projectors[to.replace(".", "_")] = projector                # a module's name may not hold a dot

    def forward(self, z_t, condition, t, text):
        n = z_t.shape[2]
        frames = fold(z_t) + self.zero_conv(fold(condition))                 # Fig. 2, top
        frames = frames.contiguous(memory_format=torch.channels_last)
        _, outputs = self.encode(frames, t, text, n, injections={})
        injections = {}
        for to, source in self.routes:
            projector, f_a = self.projectors[to.replace(".", "_")], outputs[source]
            injections[to] = projector(f_a, n) if isinstance(projector, Spade) else projector(f_a)
        return injections


@dataclass(frozen=True)
class VideoConfig(UNetConfig):
    """The keys of `video/config.json`: those of the U-Net, and the row of Table 2."""
    inject: str = "add_encdec_spade"

    def __post_init__(self):
        super().__post_init__()
        if self.inject not in INJECTIONS:
            raise ValueError(f"inject '{self.inject}': want one of {', '.join(INJECTIONS)}")
        if self.in_channels == 8 and self.inject != "concat":
            raise ValueError(f"in_channels 8 with inject '{self.inject}': want 4; only row concat reads z^c beside z_t")


class VideoModel(nn.Module):
    """f_theta(z_t, t, condition, text) of Eq. 5: the 3D U-Net and what Table 2's row `inject` adds to it.

    condition [b, 4, n, h, w], or [b, 4, 1, h, w] to be repeated n times. The arguments are those of VideoConfig."""
    Config = VideoConfig

    def __init__(self, inject="add_encdec_spade", **config):
        super().__init__()
        VideoConfig(inject=inject, **config)                                 # raises ValueError for a wrong `inject`
        self.concat = inject == "concat"
        if self.concat:
            self.unet, self.appearnet = UNet3D(**{**config, "in_channels": 8}), None
        else:
            self.unet = UNet3D(**config)
            self.appearnet = AppearNet(self.unet, inject, **config)
            for to, _ in self.appearnet.routes:
                if to.endswith(".norm"):                                     # gamma_a, beta_a replace scale and bias
                    norm = self.unet.get_submodule(to)
                    norm.affine, norm.weight, norm.bias = False, None, None
        self.to(memory_format=torch.channels_last)

    def forward(self, z_t, t, condition, text):
        condition = condition.expand_as(z_t)
        if self.concat:
            return self.unet(torch.cat([z_t, condition], dim=1), t, text)
        return self.unet(z_t, t, text, self.appearnet(z_t, condition, t, text))

    @classmethod
    @torch.no_grad()
    def grow(cls, image_unet, inject="add_encdec_spade"):
        """The untrained video model that an image model becomes (Sec. 3.1): on each frame it still is that model.

        Every tensor of `image_unet`, a UNet3D without temporal layers, is copied to the U-Net. Those of encoder and
        middle are copied once more to AppearNet. Row "concat" widens conv_in by four channels of zeros. The dtype and
        device are those of `image_unet`. At no time does memory hold more than the two models."""
        like = image_unet.conv_in.weight
        with torch.device("meta"):                                           # shapes, but no memory
            model = cls(inject, **vars(replace(image_unet.config, temporal=True)))
        model.to(like.dtype).to_empty(device=like.device)
        for name, module in model.named_modules():
            if is_new(name) and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for part in model.children():                                        # the U-Net, and AppearNet if there is one
            own = part.state_dict()
            for name, tensor in image_unet.state_dict().items():
                if name == "conv_in.weight":
                    own[name].zero_()[:, :tensor.shape[1]] = tensor
                elif name in own or part is model.unet:                      # AppearNet has no decoder
                    own[name].copy_(tensor)
        return model
