"""Exercises of Sec. 3.2: AppearNet, Eq. 1-2, Fig. 3, Table 2."""

import torch
import torch.nn.functional as F

from exercises.catalogue import TINY, close, exercise, frames_of, moving_clip, normal, stir
from unet3d import UNet3D, unfold


@exercise("3.2", "Eq. 1", "appearnet.py", "group_norm_3d", 1, 10, "Normalise a clip: over which axes?",
          "mu and sigma over (c / groups, n, h, w) of each clip; add eps to the variance. group_norm is there.")
def eq1(appearnet):
    """One frame of one channel grows: who else changes? Statistics per frame would keep it from the other frames."""
    h_m, norm = normal(2, 8, 3, 4, 5), lambda h_m: appearnet.group_norm_3d(h_m, 4)
    close(norm(0 * h_m + 5), 0 * h_m, "equal numbers become zeros, not 0 / 0: eps is added to the variance")
    louder = h_m.clone()
    louder[0, 0, 2] *= 9
    changed = (norm(louder) - norm(h_m)).abs().amax((3, 4)) > 1e-9           # [b, c, n]
    assert not changed[1].any(), "mu and sigma are those of one clip; yours depend on other clips"
    assert changed[0, 0].all(), "mu and sigma span all n frames; yours are statistics of single frames"
    assert changed[0].any(1).tolist() == [True] * 2 + [False] * 6, (
        "mu and sigma span c / groups channels together, not one, not all")
    group = h_m.unflatten(1, (4, 2))
    mu, var = group.mean((2, 3, 4, 5), keepdim=True), group.var((2, 3, 4, 5), correction=0, keepdim=True)
    close(norm(h_m), ((group - mu) / (var + 1e-5) ** 0.5).flatten(1, 2), "want (h_m - mu) / sigma")


@exercise("3.2", "Eq. 1", "sd21/kernels.py", "channels_last_group_norm", 3, 25, "Group norm by hand, from sums.",
          "[b, places, groups, c / groups] in float32. E[x^2] - E[x]^2 cancels where the mean is large: first "
          "subtract one value of each group.")
def group_norm(kernels):
    """PyTorch's own, in float64. Does a mean of 10,000 cancel?"""
    x, weight, bias = normal(2, 8, 3, 4) + 3, normal(8, seed=2), normal(8, seed=3)
    run = lambda x, *more: kernels.channels_last_group_norm(x.float(), 4, *(y.float() for y in more)).double()
    close(run(0 * x), 0 * x, "equal numbers become zeros: add eps to the variance before the root")
    group = x.flatten(2).unflatten(1, (4, 2)).flatten(2)                     # [b, groups, numbers]
    unbiased = ((group - group.mean(-1, keepdim=True)) / group.std(-1, keepdim=True)).view(x.shape)
    assert not run(x).allclose(unbiased, atol=1e-3), "the variance divides by n, not by n - 1"
    close(run(x), F.group_norm(x, 4), "want (x - mean) / sqrt(variance + eps) of each group", 1e-4)
    close(run(x + 1e4), F.group_norm((x + 1e4).float().double(), 4), "E[x^2] - E[x]^2 cancels in float32 where the "
          "mean is large; subtract one value of the group first", 1e-2)
    close(run(x, weight, 0 * bias), F.group_norm(x, 4, weight), "the weight multiplies x - mean, not x alone", 1e-4)
    close(run(x, weight, bias), F.group_norm(x, 4, weight, bias), "the bias of each channel is added", 1e-4)


@exercise("3.2", "Eq. 2", "appearnet.py", "spade", 1, 5, "De-normalise with gamma_a and beta_a, element by element.",
          "At gamma_a = beta_a = 0 nothing changes.")
def eq2(appearnet):
    """h_bar = 2, and small numbers. Without the + 1, nothing would be left of it at the start."""
    spade = lambda gamma_a, beta_a: appearnet.spade(*(torch.tensor([x]) for x in (2.0, gamma_a, beta_a))).item()
    assert spade(0.0, 0.0) == 2, "gamma_a = 0 must leave h_bar unchanged; is the + 1 missing?"
    assert spade(0.0, -1.0) == 1, "beta_a is added; is it missing, or exchanged with gamma_a?"
    assert spade(0.5, -1.0) == 2, "gamma_a + 1 multiplies h_bar, then beta_a is added: 1.5 * 2 - 1"


@exercise("3.2", "Fig. 3", "appearnet.py", "Spade.forward", 2, 15, "From AppearNet's feature to gamma_a and beta_a.",
          "Projector, SiLU, two convolutions, unfold each; return a function of h_m: functools.partial of "
          "denormalise.")
def spade(appearnet):
    """Biases of our choice, then gamma_a or beta_a that are the projected feature itself. Is there a SiLU?"""
    layer, f_a, h_m = appearnet.Spade(6, 8, 4).double(), normal(6, 6, 4, 5), normal(2, 8, 3, 4, 5, seed=2)
    h_bar, both = F.group_norm(h_m, 4), (layer.gamma, layer.beta)
    close(layer(f_a, 3)(h_m), h_bar, "with gamma_a = beta_a = 0 it is Eq. 1 with self.groups groups")
    for conv, bias in zip(both, (2.0, -5.0)):
        torch.nn.init.constant_(conv.bias, bias)
    close(layer(f_a, 3)(h_m), 3 * h_bar - 5, "want (gamma_a + 1) h_bar + beta_a; are gamma_a and beta_a exchanged?")
    for conv in both:
        torch.nn.init.eye_(conv.weight.data[:, :, 0, 0])
    x = layer.projector(f_a)
    want = lambda x: (unfold(x, 3) + 3) * h_bar + unfold(x, 3) - 5
    assert not layer(f_a, 3)(h_m).allclose(want(x)), "gamma and beta read SiLU(projector(f_a)); the SiLU is missing"
    close(layer(f_a, 3)(h_m), want(F.silu(x)), "unfold, not a reshape, makes clips of gamma_a's and beta_a's frames")


@exercise("3.2", "Fig. 2", "appearnet.py", "AppearNet.forward", 2, 20,
          "The input of AppearNet, its features, its projectors.",
          "Fold z_t and condition; encode with injections={}; for (to, f_a) of self.routes call the projector of `to` "
          "(its name with _ for .) on the output f_a; a Spade takes n too.")
def appearnet(appearnet):
    """What does encode read? What does each projector read? The text names the condition alone, Fig. 2 adds z_t."""
    net, (z_t, t, text, z_c), seen, read = appearnet.VideoModel(**TINY).appearnet, moving_clip(), [], {}
    condition, encode = z_c.expand_as(z_t), net.encode
    net.encode = lambda frames, *args, **more: seen.append((frames, encode(frames, *args, **more))) or seen[-1][1]
    net(z_t, condition, t, text)
    close(seen[0][0], frames_of(z_t), "fresh, it reads z_t: only the condition passes the zero convolution")
    stir(net)
    for name, projector in net.projectors.items():
        projector.register_forward_hook(lambda _, inputs, output, name=name: read.update({name: (inputs[0], output)}))
    injections, (frames, (_, outputs)) = net(z_t, condition, t, text), seen[-1]
    close(frames, frames_of(z_t) + net.zero_conv(frames_of(condition)), "want z_t + zero_conv(condition) (Fig. 2)")
    assert injections.keys() == {to for to, _ in net.routes}, "want one injection for each route, by its name"
    for to, f_a in net.routes:
        name = to.replace(".", "_")
        assert name in read and injections[to] is read[name][1], f"{to} gets the output of its projector"
        close(read[name][0], outputs[f_a], f"the projector of {to} reads its own feature, {f_a}")


@exercise("3.2", "Fig. 2, Table 2", "appearnet.py", "routes", 3, 30, "Which feature of AppearNet goes where?",
          "unet.channels names encoder, middle and decoder; unet.decoder and reversed(unet.skips) belong together. A "
          "row that adds has NAME or NAME.skip, SPADE has NAME.temporal_conv2.norm.")
def routes(appearnet):
    """A U-Net of two levels, every route written out. The decoder reads the skips in reverse."""
    rows = {row: set(appearnet.routes(UNet3D(**TINY), row)) for row in appearnet.INJECTIONS}
    resnets, attention = ["down_blocks.0.resnets.0", "down_blocks.1.resnets.0"], "down_blocks.0.attentions.0"
    decoder = {"up_blocks.0.resnets.0": resnets[1], "up_blocks.0.resnets.1": "down_blocks.0.downsamplers.0",
               "up_blocks.1.resnets.0": attention, "up_blocks.1.resnets.1": "conv_in"}
    skips, middle = {(f"{name}.skip", f_a) for name, f_a in decoder.items()}, ("mid_block", "mid_block")
    assert rows["concat"] == set(), "row concat has no AppearNet, so no routes"
    assert skips <= rows["add_dec"], "decoder block i adds the feature of the skip that it reads: the skips in reverse"
    assert all(middle in rows[row] for row in rows if row != "concat"), "AppearNet's middle goes to the middle"
    assert rows["add_dec"] == skips | {middle}, "add_dec has the skips and the middle, nothing else"
    assert rows["add_encdec"] == rows["add_dec"] | {(name, name) for name in (*resnets, attention)}, (
        "add_encdec also adds to each encoder ResBlock and attention the feature of its own twin")
    last, norm = rows["add_encdec_spade"], ".temporal_conv2.norm"
    assert {(name + norm, name) for name in resnets} <= last, (
        "SPADE replaces the norm of the second temporal layer of each encoder ResBlock, with its own twin's feature")
    assert {(name + norm, f_a) for name, f_a in decoder.items()} <= last, (
        "SPADE replaces the norm of the second temporal layer of each decoder ResBlock, skips in reverse")
    sums = {(attention, attention), ("up_blocks.1.attentions.0", attention), ("up_blocks.1.attentions.1", "conv_in")}
    assert sums <= last, "features are added after the encoder's and after the decoder's attentions too"
    assert len(last) == 10, "add_encdec_spade: SPADE in ResBlocks, sums after attentions, the middle, and no more"


@exercise("3.2", "", "appearnet.py", "VideoModel.grow", 3, 30, "The untrained video model that an image model becomes.",
          "Make cls on `meta`, then model.to(dtype).to_empty(device=...); reset_parameters() of new layers (is_new); "
          "copy the image model's state_dict to the U-Net, and what it has to AppearNet; conv_in of concat: zeros "
          "behind.")
def grow(appearnet):
    """Fresh, on a moving clip: is each frame still the image model's? Memory that nobody writes is NaN here."""
    flat, (z_t, t, text, z_c) = stir(UNet3D(temporal=False, **TINY)), moving_clip()
    torch.use_deterministic_algorithms(True)                                 # fills new memory with NaN
    try:
        models = {row: appearnet.VideoModel.grow(flat, row) for row in ("add_encdec_spade", "concat")}
        bfloat16 = appearnet.VideoModel.grow(UNet3D(temporal=False, **TINY).bfloat16())
    finally:
        torch.use_deterministic_algorithms(False)
    twin, weight = models["add_encdec_spade"].appearnet.state_dict(), models["concat"].unet.conv_in.weight
    assert all(twin[name].equal(x) for name, x in flat.state_dict().items() if name in twin), (
        "AppearNet starts as a copy of the image model's encoder and middle")
    assert weight[:, :4].equal(flat.conv_in.weight) and not weight[:, 4:].any(), (
        "conv_in of concat has SD's weights for z_t, and zeros for z_c")
    frames = torch.stack([flat(z_t[:, :, k:k + 1], t, text)[:, :, 0] for k in range(3)], dim=2)
    for model in models.values():
        close(model(z_t, t, z_c, text), frames, "on each frame it is the image model: copy all of it to the U-Net, and "
              "reset the new layers, of which the last ones start at zero", 1e-4)
    assert bfloat16.unet.conv_in.weight.dtype == torch.bfloat16, "the dtype is that of the image model"
