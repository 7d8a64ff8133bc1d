"""Exercises about the exercises: does each check tell the right answer from the wrong ones, and say why?"""
import ast
import json

import pytest
from conftest import subprocess_of

from exercises import __main__ as command
from exercises import catalogue
from exercises.__main__ import MARKER, main
from exercises.catalogue import EXERCISES, blank, certify, cut, find, project_source

# Of each exercise: (misunderstanding, text that occurs once in the function, text that replaces it, words that the
# message uses to name the idea).
WRONG = {
    "fold": [
        ("only reshapes", "z.transpose(1, 2).flatten(0, 1)", "z.reshape(-1, z.shape[1], *z.shape[3:])",
         "mixes channels with frames"),
        ("frames before clips", "z.transpose(1, 2).flatten(0, 1)", "z.permute(2, 0, 1, 3, 4).flatten(0, 1)",
         "clip after clip"),
        ("takes h for n", "transpose(1, 2)", "transpose(1, 3)", "swap channels and frames")],
    "temporal_conv": [
        ("no skip", "return h + fold(", "return fold(", "is the skip missing"),
        ("statistics of single frames", "self.norm(clip) if", "unfold(self.norm(h), n) if", "of single frames"),
        ("ignores denormalise", " if denormalise is None else denormalise(clip)", "", "replaces the norm"),
        ("no SiLU", "F.silu(", "(", "SiLU"),
        ("SiLU without a norm", "branch = clip", "branch = F.silu(clip)", "neither norm nor SiLU")],
    "zero_start": [
        ("no layer starts at zero", "ZeroLinear(", "nn.Linear(", "fresh, the branch adds nothing"),
        ("q, k, v and out zeroed", "ZeroLinear(channels, channels)",
         "ZeroLinear(channels, channels)\n        for p in self.attn1.parameters():\n            nn.init.zeros_(p)",
         "wait for each other"),
        ("literally all zeroed", "ZeroLinear(channels, channels)",
         "ZeroLinear(channels, channels)\n        for p in self.parameters():\n            nn.init.zeros_(p)",
         "wait for each other"),
        ("zeroed by hand", "ZeroLinear(channels, channels)",
         "nn.Linear(channels, channels)\n        for p in self.proj_out.parameters():\n            nn.init.zeros_(p)",
         "reset_parameters"),
        ("one head", "channels, heads, attend", "channels, 1, attend", "heads")],
    "sinusoids": [
        ("sines first", "[angles.cos(), angles.sin()]", "[angles.sin(), angles.cos()]", "cosines first"),
        ("cosines and sines in turn", "torch.cat([angles.cos(), angles.sin()], dim=-1)",
         "torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(-2)", "all cosines"),
        ("divides by dim", "/ (dim // 2)", "/ dim", "dim / 2 in the exponent"),
        ("frequencies that rise", "-math.log", "math.log", "falls")],
    "temporal_attention": [
        ("no positions", " + computed_once(position)", "", "order of the frames"),
        ("no skip", "return h + fold(", "return fold(", "skip around the branch"),
        ("no skip around the attention", "x = x + self.attn1(", "x = self.attn1(", "own skip"),
        ("statistics of single frames", "self.norm(clip).flatten", "unfold(self.norm(h), n).flatten",
         "of single frames"),
        ("attends to the whole clip", "self.attn1(self.norm1(x))",
         "self.attn1(self.norm1(x).flatten(1, 2)[:, None]).view_as(x)", "of its own pixel")],
    "resblock": [
        ("no skip", "return self.conv_shortcut(x) + h", "return h", "skip"),
        ("denormalise for the first temporal layer", "norm1(x))), n)", "norm1(x))), n, denormalise)",
         "second temporal"),
        ("the step t is lost", "h = h + self.time_emb_proj", "self.time_emb_proj", "time embedding"),
        ("no norm2", "F.silu(self.norm2(h))", "F.silu(h)", "norm2"),
        ("one temporal layer for both", "h = self.temporal_conv1(self.conv1(F.silu(self.norm1(x))), n)",
         "h = self.conv1(F.silu(self.norm1(x)))", "a temporal layer after each")],
    "tsr": [
        ("i / n for i / (n - 1)", "linspace(0, 1, n", "linspace(0, 1 - 1 / n, n", "i / (n - 1), not i / n"),
        ("first and last exchanged", "linspace(0, 1, n", "linspace(1, 0, n", "exchanged"),
        ("repeats the nearer end", ".view(n, 1, 1)", ".round().view(n, 1, 1)", "evenly"),
        ("repeats the mean, as the base model repeats z_c", "linspace(0, 1, n", "linspace(0.5, 0.5, n", "z_first")],
    "seeds": [
        ("one generator for the batch", "for g in generators]", "for g in generators[:1] * len(generators)]",
         "one generator for each seed"),
        ("the same noise at every call", "generator=g)", "generator=torch.Generator().manual_seed(g.initial_seed()))",
         "new noise"),
        ("all stages share their noise", '{seed} {stage}"', '{seed}"', "stage"),
        ("PyTorch's global generator", "torch.randn(shape, generator=g)", "torch.randn(shape)", "same noise again")],
    "eq1": [
        ("statistics per frame", "group_norm(h_m, groups, eps=eps)",
         "torch.stack([group_norm(frame, groups, eps=eps) for frame in h_m.unbind(2)], dim=2)", "single frames"),
        ("statistics per channel", "return group_norm(h_m, groups,", "return group_norm(h_m, h_m.shape[1],",
         "c / groups channels together"),
        ("statistics over all channels", "return group_norm(h_m, groups,", "return group_norm(h_m, 1,",
         "c / groups channels together"),
        ("no eps", "eps=eps", "eps=0.0", "0 / 0"),
        ("statistics of the whole batch", "group_norm(h_m, groups, eps=eps)",
         "(h_m - h_m.mean()) / (h_m.var(correction=0) + eps) ** 0.5", "other clips")],
    "group_norm": [
        ("squares of large numbers", "h - h[:, :1, :, :1].detach()", "h", "cancels"),
        ("divides by n - 1", "square - mean * mean",
         "(square - mean * mean) * (h[0, :, 0].numel() / (h[0, :, 0].numel() - 1))", "n, not by n - 1"),
        ("no eps", "+ eps)", "+ 0)", "eps"),
        ("the weight misses the mean", "torch.addcmul(bias, shift, weight)", "bias + shift", "weight multiplies"),
        ("no bias", "torch.addcmul(bias, shift, weight)", "shift * weight", "bias")],
    "eq2": [
        ("no + 1", "(gamma_a + 1)", "gamma_a", "is the + 1 missing"),
        ("the 1 is added to the product", "(gamma_a + 1) * h_bar", "gamma_a * h_bar + 1", "unchanged"),
        ("gamma_a and beta_a exchanged", "(gamma_a + 1) * h_bar + beta_a", "(beta_a + 1) * h_bar + gamma_a",
         "exchanged"),
        ("no beta_a", " + beta_a", "", "beta_a is added")],
    "spade": [
        ("no SiLU", "F.silu(self.projector(f_a))", "self.projector(f_a)", "SiLU"),
        ("gamma_a and beta_a exchanged", "gamma_a=unfold(self.gamma(f_a), n), beta_a=unfold(self.beta(f_a), n)",
         "gamma_a=unfold(self.beta(f_a), n), beta_a=unfold(self.gamma(f_a), n)", "exchanged"),
        ("a reshape for unfold", "beta_a=unfold(self.beta(f_a), n)",
         "beta_a=self.beta(f_a).view(-1, self.beta.out_channels, n, *f_a.shape[2:])", "unfold"),
        ("one group", "groups=self.groups", "groups=1", "self.groups")],
    "appearnet": [
        ("the condition alone", "fold(z_t) + self.zero_conv(fold(condition))", "self.zero_conv(fold(condition))",
         "z_t"),
        ("no zero convolution", "self.zero_conv(fold(condition))", "fold(condition)", "zero convolution"),
        ("zero convolution of the sum", "fold(z_t) + self.zero_conv(fold(condition))",
         "self.zero_conv(fold(z_t) + fold(condition))", "z_t"),
        ("features without projectors", "else projector(f_a)", "else f_a", "projector")],
    "routes": [
        ("the skips are not reversed", "reversed(unet.skips)", "unet.skips", "in reverse"),
        ("nothing for the middle", "return spaded + added + middle", "return spaded + added", "middle"),
        ("nothing for the encoder", 'norm", name) for name in resnets]', 'norm", name) for name in ()]',
         "its own twin"),
        ("the first temporal layer", "{name}.temporal_conv2.norm", "{name}.temporal_conv1.norm",
         "second temporal layer"),
        ("nothing for the decoder's attentions",
         "added += [(attention, skip) for (_, attention), skip in decoder if attention]", "pass",
         "after the decoder's attentions")],
    "grow": [
        ("new layers are never initialised", "module.reset_parameters()", "pass", "new layers"),
        ("AppearNet is not a copy", "model.children()", "[model.unet]", "starts as a copy"),
        ("concat: weights for z_c are left as they are", "own[name].zero_()[:, :tensor.shape[1]]",
         "own[name][:, :tensor.shape[1]]", "zeros for z_c"),
        ("concat: SD's weights read z_c", "[:, :tensor.shape[1]] = tensor", "[:, -tensor.shape[1]:] = tensor",
         "zeros for z_c"),
        ("a dtype of its own", "model.to(like.dtype).to_empty", "model.to_empty", "dtype")],
    "schedule": [
        ("a linear schedule",
         "torch.linspace(beta_start ** 0.5, beta_end ** 0.5, num_train_timesteps, dtype=torch.float64) ** 2",
         "torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64)", "linear"),
        ("a sum for the product", "(1 - betas).cumprod(0)", "(1 - betas).cumsum(0)", "product"),
        ("the roots are not squared", "dtype=torch.float64) ** 2", "dtype=torch.float64)", "square"),
        ("float32", "dtype=torch.float64", "dtype=torch.float32", "float64"),
        ("shifts and does not stretch", " * root[0] / (root[0] - root[-1])", "", "stretches"),
        ("eps at zero terminal SNR", 'prediction_type == "epsilon":', "prediction_type is None:", "0 / 0")],
    "eq3": [
        ("renormalises", "lam * z_c + eps_n", "(lam * z_c + eps_n) / (1 + lam ** 2) ** 0.5", "no renormalisation"),
        ("mixes", "lam * z_c + eps_n", "lam * z_c + (1 - lam) * eps_n", "no renormalisation"),
        ("lam scales the noise", "lam * z_c + eps_n", "z_c + lam * eps_n", "lam multiplies z_c"),
        ("the mean colour of z_c", "lam * z_c", "lam * z_c.mean((3, 4), keepdim=True)", "pixel by pixel")],
    "eq4": [
        ("no roots", "alpha_bar ** 0.5 * z_0 + (1 - alpha_bar) ** 0.5 * eps",
         "alpha_bar * z_0 + (1 - alpha_bar) * eps", "roots are missing"),
        ("exchanged", "alpha_bar ** 0.5 * z_0 + (1 - alpha_bar) ** 0.5 * eps",
         "(1 - alpha_bar) ** 0.5 * z_0 + alpha_bar ** 0.5 * eps", "exchanged"),
        ("1 minus the root", "(1 - alpha_bar) ** 0.5", "(1 - alpha_bar ** 0.5)", "squares add up to 1")],
    "z0": [
        ("Fig. 2 taken literally", "(z_t - (1 - ab) ** 0.5 * output) / ab ** 0.5, output", "z_t - output, output",
         "Fig. 2 is a sketch"),
        ("no division", "* output) / ab ** 0.5, output", "* output), output", "divide"),
        ("z_0 from v: a wrong sign", "ab ** 0.5 * z_t - (1 - ab)", "ab ** 0.5 * z_t + (1 - ab)", "z_0 = "),
        ("eps from v: a wrong sign", "output + (1 - ab) ** 0.5 * z_t", "output - (1 - ab) ** 0.5 * z_t", "eps = ")],
    "eq5": [
        ("the target is eps_n", "(output - eps) ** 2", "(output - eps_n) ** 2", "total noise"),
        ("no prior in z_t", "add_noise(z_0, eps, alpha_bar)", "add_noise(z_0, eps_n, alpha_bar)", "z_t holds"),
        ("alpha_bar off by one", "alpha_bar_at(t, z_0)", "alpha_bar_at(t - 1, z_0)", "alpha_bar_at(t"),
        ("the sum for the mean", "else error).mean()", "else error).sum()", "mean"),
        ("the absolute error", "(output - eps) ** 2", "(output - eps).abs()", "squared"),
        ("v weighted by 1 - alpha_bar", "error / alpha_bar", "error / (1 - alpha_bar)", "weighting v")],
    "guidance": [
        ("starts from cond", "return uncond + scale", "return cond + scale", "start from uncond"),
        ("the halves exchanged", "uncond, cond = model", "cond, uncond = model", "empty"),
        ("no difference", "return uncond + scale * (cond - uncond)", "return uncond + scale * cond", "difference"),
        ("the text in both passes", "[empty, text]", "[text, text]", "empty"),
        ("a shortcut without text", "model(z_t, t, text)", "model(z_t, t, empty)", "scale 1")],
    "ddim": [
        ("fresh noise with zero mean", "kept * (eps - shift) + (1 - ab_next) ** 0.5 * shift", "kept * eps",
         "zero mean"),
        ("fresh noise with the full mean of Eq. 3", "kept * (eps - shift) + (1 - ab_next) ** 0.5 * shift",
         "kept * eps + sigma * shift", "full mean"),
        ("alpha_bar off by one", "z_t = ab_next ** 0.5 * z_0", "z_t = ab ** 0.5 * z_0", "alpha_bar at the next t"),
        ("fresh noise on top of all of eps", "1 - ab_next - sigma ** 2", "1 - ab_next", "variance"),
        ("the root of eta", "sigma = eta *", "sigma = eta ** 0.5 *", "sigma is eta times"),
        ("the model is asked at the next t", "(len(z_t),), t, device", "(len(z_t),), t - 1, device", "gets t [b]")],
    "dpm": [
        ("always the first order", "d = z_0 if z_0_before is None else z_0 + h / (2 * h_before) * (z_0 - z_0_before)",
         "d = z_0", "first order"),
        ("the step sizes inverted", "h / (2 * h_before)", "h_before / (2 * h)", "half a step"),
        ("a whole step on", "h / (2 * h_before)", "h / h_before", "half a step"),
        ("backwards", "(z_0 - z_0_before)", "(z_0_before - z_0)", "half a step"),
        ("alpha_bar off by one", "z_t = ratio * z_t + ab_next ** 0.5", "z_t = ratio * z_t + ab ** 0.5",
         "alpha_bar at the next t")],
    "frechet": [
        ("no cross term", " - 2 * cross", "", "to itself is 0"),
        ("the means are not squared", "(a.mean - b.mean).square()", "(a.mean - b.mean).abs()", "squared distance"),
        ("roots element by element", "vectors * values.clamp(min=0).sqrt() @ vectors.T",
         "covariance.clamp(min=0).sqrt()", "not of roots of its elements"),
        ("the trace of both roots' product", "torch.linalg.svdvals(root(a.covariance) @ root(b.covariance)).sum()",
         "(root(a.covariance) @ root(b.covariance)).trace()", "not of roots of its elements"),
        ("no roots", "root(a.covariance) @ root(b.covariance)", "a.covariance @ b.covariance", "to itself is 0")],
    "lr": [
        ("swapped rates",
         '"lr": lr_temporal, "params": new},\n            {"name": "from the image model", "lr": lr_spatial',
         '"lr": lr_spatial, "params": new},\n            {"name": "from the image model", "lr": lr_temporal',
         "swapped"),
        ("only names with temporal", "if is_new(name)]", 'if "temporal" in name]', "in exactly one group"),
        ("one rate for all", '"lr": lr_spatial', '"lr": lr_temporal', "ten times"),
        ("AppearNet is all new",
         "if is_new(name)]\n    copied = [p for name, p in model.named_parameters() if not is_new(name)]",
         'if is_new(name) or "appearnet" in name]\n    copied = [p for name, p in model.named_parameters() if not '
         '(is_new(name) or "appearnet" in name)]', "copy of SD")],
    "train_step": [
        ("no clipping", "nn.utils.clip_grads_with_norm_(self.masters.values(), 1.0, norm)", "pass", "clipped"),
        ("the rate shrinks at every step", 'original["lr"] * scale', 'group["lr"] * scale', "scale times the stage's"),
        ("gradients pile up", "self.stage.model.zero_grad()", "pass", "cleared"),
        ("decay and share exchanged", "1 - decay)", "decay)", "decay"),
        ("no warm-up of the average", "min(self.run.ema, (1 + step) / (10 + step))", "self.run.ema", "decay"),
        ("no step of AdamW", "self.optimizer.step()", "pass", "AdamW")],
    "rename": [
        ("stops at the first rule that fits", "name = re.sub(pattern, new, name)",
         "if re.search(pattern, name):\n            return re.sub(pattern, new, name)", "all rules"),
        ("backwards", "in rules:", "in reversed(rules):", "in order"),
        ("patterns as plain text", "re.sub(pattern,", "re.sub(re.escape(pattern),", "regular expression"),
        ("only the first place", "re.sub(pattern, new, name)", "re.sub(pattern, new, name, count=1)", "every place")],
    "bpe": [
        ("the pair learned last", "min(known", "max(known", "learned first"),
        ("the leftmost pair", "min(known, key=self.rank.get)",
         "next(pair for pair in zip(symbols, symbols[1:]) if pair in known)", "learned first"),
        ("merges once", "while known", "if known", "again and again"),
        ("no mark at the end of the word", "symbols = spell(word)", "symbols = list(word)", "ends a word")],
    "vae_scale": [
        ("no scale", " * vae.scale", "", "unit variance"),
        ("divides", "* vae.scale", "/ vae.scale", "multiply"),
        ("the log variance", "vae.encode(frames)[0]", "vae.encode(frames)[1]", "mean"),
        ("frames and channels mixed", "fold(x).to", "x.reshape(-1, *x.shape[1:2], *x.shape[3:]).to", "frame by frame"),
        ("a sample for the mean", "vae.encode(frames)[0]", "torch.normal(*vae.encode(frames))", "mean")],
    "gamma": [
        ("no gamma", "s.lam + s.gamma)", "s.lam)", "gamma"),
        ("gamma times lambda", "s.lam + s.gamma)", "s.lam * s.gamma)", "gamma"),
        ("z_c in one pass of the guidance only",
         "condition.to(z_t.dtype).repeat(len(z_t) // len(condition), 1, 1, 1, 1)",
         "torch.cat([0 * condition, condition])[-len(z_t):]", "both passes"),
        ("gamma at every step", "s.lam * condition, name", "(s.lam + s.gamma) * condition, name", "only the start"),
        ("no shift", "s.lam * condition, name", "0.0, name", "fresh noise")],
}
wrong_answers = pytest.mark.parametrize("id, misunderstanding, old, new, words", [
    pytest.param(id, *wrong, id=f"{id}: {wrong[0]}") for id, wrongs in WRONG.items() for wrong in wrongs])
every_exercise = pytest.mark.parametrize("exercise", EXERCISES.values(), ids=EXERCISES)


def changed(exercise, old, new):
    """The text of the exercise's file with a wrong answer."""
    before, function, after = cut(project_source(exercise.file), exercise.function)
    assert function.count(old) == 1, f"{exercise.file}: the wrong answer is out of date"
    return before + function.replace(old, new) + after


# ---- the checks ----

@every_exercise
def test_the_projects_own_function_is_right(exercise):
    """Otherwise nobody could pass."""
    assert certify(exercise, project_source(exercise.file)) == ""


@every_exercise
def test_a_blank_is_not_right(exercise):
    """And the message says that it is blank."""
    message = certify(exercise, blank(project_source(exercise.file), exercise))
    assert message == f"still blank. {exercise.task}"         # breaks if the function is never called


@pytest.mark.slow
@wrong_answers
def test_a_wrong_answer_is_told_its_idea(id, misunderstanding, old, new, words):
    """A plausible misunderstanding, one small change in the real function. Does the message name the idea?"""
    message = certify(EXERCISES[id], changed(EXERCISES[id], old, new))
    assert words in message and message.startswith(("Eq. ", EXERCISES[id].function)), message


def test_each_exercise_has_three_wrong_answers():
    """Each fits the function as it is today: its text occurs there once."""
    assert list(WRONG) == list(EXERCISES)
    for id, wrongs in WRONG.items():
        assert len({changed(EXERCISES[id], old, new) for _, old, new, _ in wrongs}) >= 3, id


def test_there_are_24_exercises_or_more_in_the_order_of_the_paper():
    """By section."""
    sections = [exercise.section for exercise in EXERCISES.values()]
    assert sections == sorted(sections) and len(sections) >= 24


@every_exercise
def test_a_blank_keeps_signature_docstring_and_everything_else(exercise):
    """What has changed in the file? One function's body, in lines of at most 120."""
    texts = [project_source(exercise.file), blank(project_source(exercise.file), exercise)]
    (before, _, after), (start, hole, end) = (cut(text, exercise.function) for text in texts)
    own, left = (body[i] for body, i in (find(ast.parse(text), exercise.function) for text in texts))
    assert (start, end) == (before, after) and ast.dump(own.args) == ast.dump(left.args)
    assert ast.get_docstring(own) == ast.get_docstring(left) and "# Hint: " in hole
    assert max(map(len, hole.splitlines())) <= 120


# ---- what may be in an answer ----

def answer(body):
    """certify's message for another body of spade (Eq. 2)."""
    return certify(EXERCISES["eq2"], changed(EXERCISES["eq2"], "return (gamma_a + 1) * h_bar + beta_a", body))


@pytest.mark.parametrize("id, old, new", [
    ("fold", "z.transpose(1, 2).flatten(0, 1)", "z.permute(0, 2, 1, 3, 4).reshape(-1, z.shape[1], *z.shape[3:])"),
    ("eq2", "(gamma_a + 1) * h_bar + beta_a", "torch.addcmul(h_bar, h_bar, gamma_a) + beta_a"),
    ("eq4", "** 0.5 * z_0 + (1 - alpha_bar) ** 0.5 * eps", "** 0.5 * (z_0 + (1 / alpha_bar - 1) ** 0.5 * eps)"),
    ("guidance", "return uncond + scale * (cond - uncond)", "return scale * cond + (1 - scale) * uncond"),
    ("ddim", "kept * (eps - shift) + (1 - ab_next) ** 0.5 * shift",
     "kept * eps + ((1 - ab_next) ** 0.5 - kept) * shift")])
def test_another_spelling_is_right_too(id, old, new):
    """Any code that does the same."""
    assert certify(EXERCISES[id], changed(EXERCISES[id], old, new)) == ""


def test_an_exception_is_reported_with_the_line_of_the_students_file():
    """Line 2 of the body; the functions above it may be blank and have another length."""
    text = changed(EXERCISES["eq2"], "return (gamma_a + 1)", "h_bar = h_bar.nothing\n    return (gamma_a + 1)")
    text = blank(text, EXERCISES["eq1"])
    line = text[:text.index("h_bar.nothing")].count("\n") + 1
    message = certify(EXERCISES["eq2"], text)
    assert message.startswith(f"appearnet.py, line {line}: AttributeError: ")          # breaks if texts are spliced


@pytest.mark.parametrize("body, words", [
    ("return (gamma_a + 1", "SyntaxError"), ("raise SystemExit", "SystemExit"), ("assert False", "Eq. 2: "),
    ("return None", "TypeError|NoneType|AttributeError")])
def test_no_answer_ends_the_command(body, words):
    """Broken Python, an exit, an assertion of the student's, no result: each is a message."""
    message = answer(body)
    assert message and any(word in message for word in words.split("|"))


def test_a_loop_that_never_ends_is_stopped(monkeypatch):
    """bpe's loop, when nothing is merged."""
    monkeypatch.setattr(catalogue, "SECONDS", 1)
    text = changed(EXERCISES["bpe"], "symbols = merge(", "merge(")
    assert "does a loop never end?" in certify(EXERCISES["bpe"], text)


def test_one_blank_does_not_spoil_the_next_exercise():
    """Eq. 5 calls Eq. 3 and 4, Spade calls Eq. 1 and 2. All others of the file are blank: is the answer still right?"""
    for id in ("spade", "ddim", "temporal_conv"):
        text = project_source(EXERCISES[id].file)
        for other in EXERCISES.values():
            text = blank(text, other) if other.file == EXERCISES[id].file and other.id != id else text
        assert certify(EXERCISES[id], text) == ""                            # breaks if the student's others are run


def test_a_check_leaves_no_trace():
    """Random numbers, threads and settings of the process: are they as before?"""
    state = catalogue.torch.get_rng_state()
    certify(EXERCISES["grow"], project_source("appearnet.py"))
    assert catalogue.torch.get_rng_state().equal(state)
    assert not catalogue.torch.are_deterministic_algorithms_enabled()


# ---- the command ----

@pytest.fixture
def folder(tmp_path):
    """A working copy in which Eq. 2 and Eq. 3 are blank."""
    assert main(["start", "eq2", "eq3", "--in", str(tmp_path / "my_work")]) == 0
    return tmp_path / "my_work"


def solve(folder, *ids):
    """Writes the project's own functions into a working copy."""
    for id in ids:
        file, own = folder / EXERCISES[id].file, cut(project_source(EXERCISES[id].file), EXERCISES[id].function)[1]
        before, _, after = cut(file.read_text(), EXERCISES[id].function)
        file.write_text(before + own + after)


def test_the_list_is_json_for_a_grader(capsys):
    """Ids in the order of the paper; without a command, a table."""
    assert main(["list", "--json"]) == 0
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == list(EXERCISES)
    assert main([]) == 0
    assert "eq2                3.2 Eq. 2" in capsys.readouterr().out


def test_start_blanks_these_functions_in_a_copy(folder, capsys):
    """Is every other file of the copy the project's, and is the project itself untouched?"""
    for file in folder.rglob("*.py"):
        same = file.read_text() == project_source(file.relative_to(folder))
        assert same == (file.name not in ("appearnet.py", "sampler.py")), file
    assert {path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink()} == {
        "data", "evaluation", "sd21", "training", "upscaler"} and (folder / "toy").is_symlink()
    assert sum(file.stat().st_size for file in folder.rglob("*") if not file.is_symlink() and file.is_file()) < 1e6


def test_check_knows_right_from_wrong(folder, capsys):
    """Blank, half done, done: exit codes 1, 1, 0."""
    assert main(["check", "--in", str(folder)]) == 1
    solve(folder, "eq2")
    assert main(["check", "eq2", "--in", str(folder)]) == 0
    capsys.readouterr()
    assert main(["check", "--json", "--in", str(folder)]) == 1
    first, second = json.loads(capsys.readouterr().out)
    assert first == {"id": "eq2", "problem": "", "right": True}
    assert second["id"] == "eq3" and not second["right"] and "still blank" in second["problem"]
    solve(folder, "eq3")
    assert main(["check", "--in", str(folder)]) == 0


def test_what_an_answer_prints_does_not_disturb_the_json(folder, capsys):
    """It goes to stderr."""
    file = folder / "appearnet.py"
    file.write_text(file.read_text() + '\nprint("noise")\n')
    main(["check", "eq2", "--json", "--in", str(folder)])
    assert json.loads(capsys.readouterr().out)[0]["id"] == "eq2"


def test_start_again_leaves_the_students_work(folder, capsys):
    """A finished answer, a changed function, a new exercise. Which of them is blank afterwards?"""
    solve(folder, "eq2")
    file = folder / "sampler.py"
    file.write_text(file.read_text().replace("return alpha_bar ** 0.5 * z_0", "return 2 * alpha_bar ** 0.5 * z_0"))
    assert main(["start", "3.2", "eq4", "--in", str(folder)]) == 0
    blanks = file.read_text().count("NotImplementedError"), (folder / "appearnet.py").read_text().count("NotImpl")
    assert blanks == (1, 5)                                                  # eq3; 3.2 in appearnet.py but eq2
    assert json.loads((folder / MARKER).read_text())["started"][:2] == ["eq2", "eq3"]
    assert "eq4: add_noise in" in capsys.readouterr().out


@pytest.mark.parametrize("words, line", [
    (["start", "eq9", "--in", "new"], "eq9: neither an exercise nor a section"),
    (["start", "eq2", "--in", "full"], "full: there are other files already"),
    (["start", "eq2", "--in", "full/a.txt"], "a.txt: there are other files already"),
    (["check", "--in", "full"], "full: `start` did not make this folder"),
    (["check", "eq2", "--in", "nowhere"], "nowhere")])
def test_errors_are_one_line_and_code_2(words, line, tmp_path, monkeypatch, capsys):
    """An unknown exercise, a folder with other files, a file, no working copy."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    assert main(words) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "a.txt"]


def test_a_broken_file_is_not_blanked_further(folder, capsys):
    """The student's file does not parse: start says so and changes nothing."""
    file = folder / "sampler.py"
    file.write_text("def broken(:\n")
    assert main(["start", "eq4", "--in", str(folder)]) == 2
    assert "mend it first" in capsys.readouterr().err and file.read_text() == "def broken(:\n"


def test_solution_prints_the_projects_lines(capsys):
    """With file and line."""
    assert main(["solution", "eq2"]) == 0
    out = capsys.readouterr().out
    place, *lines = out.strip().splitlines()
    file, line = place.removeprefix("# ").split()[0].split(":")
    assert project_source(file).splitlines()[int(line) - 1:int(line) - 1 + len(lines)] == lines


def test_show_prints_the_guides_paragraph(tmp_path, monkeypatch, capsys):
    """Only the paragraphs that name the exercise."""
    (tmp_path / "guide.md").write_text("One paragraph\nabout `eq2`.\n\nAnother, about `eq3`.\n")
    monkeypatch.setattr(command, "GUIDE", tmp_path / "guide.md")
    assert main(["show", "eq2"]) == 0
    out = capsys.readouterr().out
    assert "One paragraph\nabout `eq2`." in out and EXERCISES["eq2"].hint in out and "Another" not in out


@pytest.mark.slow
def test_the_copy_runs(folder):
    """With Eq. 3 solved, does the student's own copy make a video? With Eq. 3 blank, does it say so?"""
    video = (folder / "microcinema.py", "a red circle moving left", "--steps", "1", "--out", folder / "a.gif")
    assert "NotImplementedError: eq" in subprocess_of(*video).stderr
    solve(folder, "eq2", "eq3")
    assert subprocess_of(*video).returncode == 0 and (folder / "a.gif").is_file()


@pytest.mark.slow
def test_the_command_checks_in_a_process_of_its_own(folder):
    """As a student types it."""
    done = subprocess_of("-m", "exercises", "check", "eq2", "--in", folder)
    assert (done.returncode, done.stdout) == (1, f"eq2: still blank. {EXERCISES['eq2'].task}\n")
