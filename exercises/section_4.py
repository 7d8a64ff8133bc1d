"""Exercises of Sec. 4: metrics, learning rates, training, SD2.1's names, text and latents, and gamma."""

from types import SimpleNamespace

import torch

from appearnet import VideoModel
from exercises.catalogue import TINY, close, exercise, last, normal
from sampler import NoiseSchedule, ddim
from sd21.names import RENAME
from training.loop import Run


@exercise("4", "FVD", "evaluation/fvd.py", "frechet_distance", 2, 20, "The Frechet distance of two Gaussians.",
          "Squared distance of the means, plus both traces, minus twice the trace of (C_a C_b)^(1/2): the sum of the "
          "singular values of the product of both roots. torch.linalg.eigh, svdvals.")
def frechet(fvd):
    """Two covariances that share no axes, by hand. Roots element by element, or one root forgotten, would show."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]]).double()
    make = lambda mean, values, turn: SimpleNamespace(
        mean=torch.tensor(mean).double(), covariance=turn @ torch.diag(torch.tensor(values).double()) @ turn.T)
    straight = torch.eye(2).double()
    a, b = make([0.0, 0.0], [4.0, 9.0], straight), make([3.0, 4.0], [4.0, 9.0], straight)
    same = fvd.frechet_distance(a, a)
    assert abs(same) < 1e-6, "the distance of a set to itself is 0: subtract 2 tr((C_a C_b)^(1/2))"
    assert abs(fvd.frechet_distance(a, b) - 25) < 1e-6, "the means count with their squared distance: 3^2 + 4^2"
    c = make([0.0, 0.0], [1.0, 25.0], straight)
    assert abs(fvd.frechet_distance(a, c) - 5) < 1e-6, "with shared axes it is (2 - 1)^2 + (3 - 5)^2"
    d = make([0.0, 0.0], [4.0, 9.0], turn)
    values = torch.linalg.eigvals(a.covariance @ d.covariance).real          # of the product itself
    assert abs(fvd.frechet_distance(a, d) - 26 + 2 * values.sqrt().sum()) < 1e-6, (
        "the cross term is the trace of the matrix root of C_a C_b, not of roots of its elements, nor of S_a S_b")


@exercise("4.1", "", "train.py", "parameter_groups", 1, 10, "The two learning rates: which tensor gets which?",
          "is_new(name) over model.named_parameters(); two dicts for AdamW with name, lr and params.")
def lr(train):
    """Every parameter by name: with which rate? Swapped rates would spoil SD's weights and leave the new ones."""
    model = VideoModel(**TINY)
    rates = [(id(p), group["lr"]) for group in train.parameter_groups(model) for p in group["params"]]
    assert sorted(i for i, _ in rates) == sorted(id(p) for p in model.parameters()), (
        "every parameter is in exactly one group; zero convolutions and projectors are new too")
    rate_of = {name: dict(rates)[id(p)] for name, p in model.named_parameters()}
    temporal, spatial = rate_of["unet.temporal_conv_in.conv.weight"], rate_of["unet.conv_in.weight"]
    assert temporal >= spatial, "the rates are swapped: SD's tensors are trained already"
    assert abs(temporal / spatial - 10) < 1e-6, "the temporal rate is ten times the spatial one"
    assert rate_of["appearnet.conv_in.weight"] == spatial, "AppearNet is a copy of SD's encoder, except its new layers"
    assert rate_of["appearnet.zero_conv.weight"] == temporal, "AppearNet's zero convolution is new"


@exercise("4.1", "", "training/state.py", "TrainState.step", 3, 25, "A training step: clip, AdamW, average.",
          "In float32 and one process the masters are the parameters; run.fsdp and self.copies are False. Rates from "
          "self.stage.groups; total norm; clip to 1; optimizer.step; clear gradients; the average with the decay "
          "min(ema, (1 + step) / (10 + step)).")
def train_step(state):
    """One weight, gradients of 8: two steps by hand. Without clipping, AdamW's moment would see 8."""
    model, run = torch.nn.Linear(1, 1, bias=False), Run("exercise", batch=1, ema=0.9, device="cpu")
    torch.nn.init.ones_(model.weight)
    train = state.TrainState(SimpleNamespace(model=model, groups=[{"lr": 0.1, "params": [model.weight]}]), run)
    for step, moment in enumerate((0.1, 0.19)):
        model.weight.grad, before, average = torch.full((1, 1), 8.0), model.weight.item(), train.ema["weight"].item()
        norm = train.step(step, 0.5)
        assert abs(norm.item() - 8) < 1e-4, "return the norm of the gradient before clipping"
        assert model.weight.item() != before, "AdamW moves the weights"
        assert abs(train.optimizer.param_groups[0]["lr"] - 0.05) < 1e-9, (
            "the rate is scale times the stage's own, not times that of the step before")
        got = train.optimizer.state[model.weight]["exp_avg"].item()
        assert abs(got - moment) < 1e-4, "the gradient is clipped to norm 1 before AdamW sees it"
        assert model.weight.grad is None or not model.weight.grad.any(), "gradients are cleared for the next step"
        decay = (1 + step) / (10 + step)
        assert abs(train.ema["weight"].item() - decay * average - (1 - decay) * model.weight.item()) < 1e-6, (
            "the average keeps the share decay = min(ema, (1 + step) / (10 + step)) of itself; the rest is the weight")


@exercise("4.1", "SD2.1", "sd21/names.py", "rename", 1, 10, "The rename table: a tensor's name after all rules.",
          "re.sub, one rule after the other.")
def rename(names):
    """Small rules, then a tensor of the single file that needs several of SD2.1's."""
    assert names.rename("a.a", [("a", "b")]) == "b.b", "a rule changes every place that fits"
    assert names.rename("a", [("a", "b"), ("b", "c")]) == "c", "all rules, in order: each on the result of those above"
    assert names.rename("a1", [(r"a\d", "b")]) == "b", "a pattern is a regular expression"
    name = "model.diffusion_model.input_blocks.4.1.proj_in.weight"
    assert names.rename(name, RENAME) == "unet/down_blocks.1.attentions.0.proj_in.weight", "SD2.1's rules, in order"


@exercise("4.1", "text", "sd21/text.py", "Tokenizer.bpe", 2, 20, "The merge loop of byte-pair encoding.",
          "spell(word); while a pair of neighbours is in self.rank, merge the one of lowest rank; ids from self.id; "
          "keep them in self.cache.")
def bpe(text):
    """A few merges and words. The leftmost pair is not the one that was learned first."""
    def spelt(word, *merges):
        tokenizer = text.Tokenizer(merges)
        symbol = {number: symbol for symbol, number in tokenizer.id.items()}
        return [symbol[number] for number in tokenizer.bpe(word)]
    first = "of all known pairs, join the one that was learned first, wherever it is"
    assert spelt("c") == ["c</w>"], "the last symbol of a word is another one, which ends a word: see spell"
    assert spelt("abc", ("b", "c</w>"), ("a", "b")) == ["a", "bc</w>"], first
    assert spelt("abc", ("a", "b"), ("b", "c</w>")) == ["ab", "c</w>"], first
    assert spelt("cat", ("c", "a"), ("ca", "t</w>")) == ["cat</w>"], "join again and again, until no known pair is left"


@exercise("4.1", "latents", "microcinema.py", "encode_video", 1, 10, "From pixels to latents of unit variance.",
          "vae.encode takes pictures and returns mean and log variance; vae.scale; fold and unfold.")
def vae_scale(microcinema):
    """A codec of which every number is known. Without the scale, lam and gamma would mean something else."""
    x = normal(2, 3, 5, 4, 6).float()
    latents = lambda frames: 4 * frames[:, [0, 1, 2, 0]]                     # the mean; the log variance is 9
    vae = SimpleNamespace(scale=0.25, parameters=lambda: iter([torch.ones(1)]),
                          encode=lambda frames: (latents(frames), torch.full_like(latents(frames), 9.0)))
    z, again = (microcinema.encode_video(vae, x) for _ in range(2))
    assert z.equal(again) and z.std() > 0.1, "the mean of the posterior, not a sample and not the variance"
    assert z.std() < 10, "multiply by the scale; decode divides"
    assert abs(z.std() - 1) < 0.2, "multiply by vae.scale: lam and gamma are meant for latents of unit variance"
    close(z, x[:, [0, 1, 2, 0]], "frame by frame, with fold; then unfold to [b, 4, n, h, w]")


@exercise("4.2.2", "Fig. 6", "microcinema.py", "MicroCinema.sample_video", 2, 20,
          "The first noise has lambda + gamma; both passes of guidance see z_c.",
          "noise(...) makes next_noise; f_theta(z_t, t, text) repeats the condition as guidance repeats z_t; z_T; "
          "then self.sample with shift = lam z_c.")
def gamma(microcinema):
    """A model that answers a tenth of z_t and writes down its inputs; DDIM with the same noise, at eta = 1."""
    s = microcinema.Sampling(frames=3, lam=0.3, gamma=0.2, steps=4, guidance=2.0, eta=1.0)
    z_c, schedule, asked = normal(2, 4, 1, 2, 3).float(), NoiseSchedule(), []
    cinema = microcinema.MicroCinema(None, None, None, None, None, schedule, progress=False)
    f_theta = lambda z_t, t, condition, text: asked.append((z_t, condition)) or 0.1 * z_t
    text = torch.zeros(2, 5, 6)
    z = cinema.sample_video(f_theta, z_c, text, text, s, (0, 1), "video", "video")
    (both, conditions), next_noise = asked[0], microcinema.noise((0, 1), (4, 3, 2, 3), "video")
    z_T = next_noise() + 0.5 * z_c
    close(both[:2], z_T, "the first noise is eps_n + (lam + gamma) z_c; is gamma missing?")
    assert both[2:].equal(both[:2]) and conditions.equal(torch.cat([z_c, z_c])), (
        "z_c and the prior stay in both passes of the guidance, or lambda would grow with its scale")
    fresh = [next_noise() for _ in range(s.steps)]
    with_gamma, right = (last(ddim(lambda z_t, t: 0.1 * z_t, z_T, schedule.timesteps(4), schedule, shift * z_c, eta=1.0,
                                   noise=iter(fresh).__next__)) for shift in (0.5, 0.3))
    assert not z.allclose(with_gamma, atol=1e-3), "gamma corrects only the start; shift, at every step, is lam z_c"
    close(z, right, "fresh noise (eta > 0) has the mean lam z_c too: pass shift and next_noise on", 1e-3)
