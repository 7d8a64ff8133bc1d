"""Appearance injection: Sec. 3.2, Fig. 3, Eq. 1-2, Table 2.

in    z_t and condition [b, 4, n, h, w] (z_c repeated n times in the base model, Sec. 3.1), t [b], text [b, l, d]
out   AppearNet: {path: what to inject}, for `injections` of unet3d.UNet3D; VideoModel: eps, the shape of z_t
here  group_norm_3d (Eq. 1), spade (Eq. 2), AppearNet, routes and INJECTIONS (the four rows of Table 2),
      VideoModel (f_theta of Eq. 5: U-Net and AppearNet together)

ours  - The input is z_t + ZeroConv(condition), as Fig. 2 draws it; the text of Sec. 3.2 names the condition alone.
      - SPADE replaces the norm of the *second temporal layer* of each ResBlock (Fig. 3), not SD's own norms, whose
        learned scale and bias would be lost ("the GroupNorm layers of the U-Net", Sec. 4.2.1, could mean either).
      - "Projector" is not defined. In front of gamma_a and beta_a: a 1x1x1 convolution and SiLU, randomly started; for
        the added features: one zero convolution. A second zero in either chain would stop its gradient for ever.
      - Which feature goes where in the decoder: ControlNet's order (Zhang et al. 2023), see `routes`.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from unet3d import Encoder, UNet3D, fold, group_norm, unfold, zero

NEW = ("temporal", "zero_conv", "projectors")     # one of these is in the name of every tensor that the paper adds
INJECTIONS = ("concat", "add_dec", "add_encdec", "add_encdec_spade")        # Table 2, top to bottom; the last is ours


def is_new(name):
    """Does a tensor of VideoModel have this name because the paper adds it, or because SD2.1 has it?"""
    return any(word in name for word in NEW)


def group_norm_3d(h_m, groups, eps=1e-5):
    """Eq. 1: h_bar = (h_m - mu) / sigma, with mu and sigma over (c / groups, n, h, w) of h_m [b, c, n, h, w]."""
    return group_norm(h_m, groups, eps=eps)


def spade(h_bar, gamma_a, beta_a):
    """Eq. 2, element by element, all [b, c, n, h, w]. The paper calls the result sigma, like Eq. 1's deviation."""
    return (gamma_a + 1) * h_bar + beta_a


def denormalise(h_m, gamma_a, beta_a, groups):
    """Fig. 3, the second temporal layer's norm: Eq. 1, then Eq. 2."""
    return spade(group_norm_3d(h_m, groups), gamma_a, beta_a)


def routes(unet, inject):
    """Which feature of AppearNet goes where: [(path in the U-Net, path in AppearNet)] for a row of Table 2.

    Encoder: each ResBlock and attention takes from its own twin. Decoder block i takes what AppearNet has at the level
    of the skip that block i reads. The middle output joins where the first decoder ResBlock reads; the U-Net's own
    middle gets nothing (Fig. 2).
    """
    encoder = [path for path in unet.encoder_paths() if "resnets" in path or "attentions" in path]
    decoder = list(zip(unet.decoder_paths(), reversed(unet.skip_paths()), strict=True))
    to_skips = [(f"{resnet}.skip", f_a) for (resnet, _), f_a in decoder] + [("mid_block", "mid_block")]
    if inject == "concat":
        return []
    if inject == "add_dec":
        return to_skips
    if inject == "add_encdec":
        return [(path, path) for path in encoder] + to_skips
    spaded = [(f"{path}.temporal_conv2.norm", path) for path in encoder if "resnets" in path]
    spaded += [(f"{resnet}.temporal_conv2.norm", f_a) for (resnet, _), f_a in decoder]
    added = [(path, path) for path in encoder if "attentions" in path]
    added += [(attention, f_a) for (_, attention), f_a in decoder if attention]
    return spaded + added + [("mid_block", "mid_block")]


class Spade(nn.Module):
    """Fig. 3, right to left: f_a -> Projector -> two 1x1x1 convolutions -> gamma_a, beta_a, zero at the start."""

    def __init__(self, c_a, c, groups):
        super().__init__()
        self.groups = groups
        self.projector = nn.Conv2d(c_a, c, 1)
        self.gamma = zero(nn.Conv2d(c, c, 1))
        self.beta = zero(nn.Conv2d(c, c, 1))

    def forward(self, f_a, n):
        f_a = F.silu(self.projector(f_a))                                    # [(b n), c, h, w]
        return partial(denormalise, gamma_a=unfold(self.gamma(f_a), n), beta_a=unfold(self.beta(f_a), n),
                       groups=self.groups)


class AppearNet(Encoder):
    """A trainable copy of the U-Net's encoder and middle, temporal layers included, and a projector for each route.

    `unet` is the U-Net to inject into; AppearNet only asks it for its paths and channels.
    """

    def __init__(self, unet, inject="add_encdec_spade", **config):
        super().__init__(**config)
        self.zero_conv = zero(nn.Conv2d(4, 4, 1))                            # on latents, in front of conv_in
        self.routes = routes(unet, inject)
        self.projectors = nn.ModuleDict()
        for to, f_a in self.routes:
            c_a = self.channels(f_a)
            if to.endswith(".norm"):
                projector = Spade(c_a, unet.get_submodule(to).num_channels, self.common["groups"])
            else:                                                            # a skip has its feature's channels
                projector = zero(nn.Conv2d(c_a, c_a if to.endswith(".skip") else unet.channels(to), 1))
            self.projectors[to.replace(".", "_")] = projector

    def forward(self, z_t, condition, t, text):
        n = z_t.shape[2]
        frames = fold(z_t) + self.zero_conv(fold(condition))                 # Fig. 2, top
        frames = frames.contiguous(memory_format=torch.channels_last)
        _, outputs = self.encode(frames, t, text, n, injections={})
        injections = {}
        for to, f_a in self.routes:
            projector, f_a = self.projectors[to.replace(".", "_")], outputs[f_a]
            injections[to] = projector(f_a, n) if isinstance(projector, Spade) else projector(f_a)
        return injections


class VideoModel(nn.Module):
    """f_theta(z_t, t, condition, text) of Eq. 5: the 3D U-Net and what Table 2's row `inject` adds to it.

    condition [b, 4, n, h, w], or [b, 4, 1, h, w] to be repeated n times. `config` is that of unet3d.Encoder.
    """

    def __init__(self, inject="add_encdec_spade", **config):
        super().__init__()
        if inject not in INJECTIONS:
            raise ValueError(f"inject '{inject}': want one of {', '.join(INJECTIONS)}")
        self.concat = inject == "concat"
        self.unet = UNet3D(**config | {"in_channels": 8} if self.concat else config)
        self.appearnet = None if self.concat else AppearNet(self.unet, inject, **config)
        for to, _ in [] if self.concat else self.appearnet.routes:
            if to.endswith(".norm"):                                         # gamma_a and beta_a take the place of
                norm = self.unet.get_submodule(to)                           # this norm's own scale and bias
                norm.affine, norm.weight, norm.bias = False, None, None
        self.to(memory_format=torch.channels_last)

    def forward(self, z_t, t, condition, text):
        condition = condition.expand_as(z_t)
        if self.concat:
            return self.unet(torch.cat([z_t, condition], dim=1), t, text)
        return self.unet(z_t, t, text, self.appearnet(z_t, condition, t, text))

    @classmethod
    @torch.no_grad()
    def grow(cls, image_unet, inject="add_encdec_spade", **config):
        """The untrained video model that an image model becomes (Sec. 3.1): frame by frame, it still is that model.

        Every tensor of `image_unet`, a UNet3D without temporal layers built from `config`, is copied to the U-Net, and
        those of encoder and middle once more to AppearNet. Row "concat" widens conv_in by four channels of zeros.
        The dtype and device are those of `image_unet`, and nothing is held twice on the way.
        """
        like = image_unet.conv_in.weight
        with torch.device("meta"):                                           # shapes, but no memory
            model = cls(inject, **config)
        model.to(like.dtype).to_empty(device=like.device)
        for name, module in model.named_modules():
            if is_new(name) and hasattr(module, "reset_parameters"):
                module.reset_parameters()
        for part in filter(None, (model.unet, model.appearnet)):
            own = part.state_dict()
            for name, tensor in image_unet.state_dict().items():
                if name == "conv_in.weight":
                    own[name].zero_()[:, :tensor.shape[1]] = tensor
                elif name in own or part is model.unet:                      # AppearNet has no decoder
                    own[name].copy_(tensor)
        return model
