"""Exercises for sampler.py: Eq. 3-4, Sec. 4.2.2, and the proof that the paper leaves to its supplement, in numbers."""
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from sampler import NoiseSchedule, add_noise, appearance_noise, ddim, dpm_solver_pp, guide

REFERENCE = Path(__file__).parent / "reference"
SCHEDULE = NoiseSchedule()
SHAPE = (2, 4, 3, 5, 6)                                                      # b, c, n, h, w
both_solvers = pytest.mark.parametrize("solver", [ddim, dpm_solver_pp])


def normal(*shape, seed=0):
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(states):
    """The last z_t that a sampler yields."""
    *_, z = states
    return z


# ---- the schedule ----

def test_the_schedule_is_sd21s_and_not_the_linear_one():
    """SD2.1's constants, to seven digits. With evenly spaced betas, not roots, it ends at 0.001579."""
    ab = SCHEDULE.alpha_bar
    for t, value in ((999, 0.0046600985), (981, 0.0057755), (961, 0.0072817), (0, 0.99915)):
        assert abs(ab[t].item() - value) < 5e-8 + 5e-6 * value               # breaks without the square roots
    assert abs((ab[999] / (1 - ab[999])).sqrt().item() - 0.0684245) < 1e-7   # k_T


def test_the_table_is_the_published_one():
    """All thousand entries, against diffusers (float32)."""
    published = load_file(REFERENCE / "ddim.safetensors")["alphas_cumprod"]
    assert_close(SCHEDULE.alpha_bar.float(), published, rtol=2e-6, atol=0)


def test_no_float64_is_moved_to_a_device():
    """Apple's GPU has no float64. `meta` stands for it: what is there, what stays, and are the numbers the same?"""
    schedule, t = NoiseSchedule().to("meta"), torch.tensor([0, 500, 999])
    there = [x for x in vars(schedule).values() if isinstance(x, torch.Tensor) and x.device.type == "meta"]
    assert [x.dtype for x in there] == [torch.float32]                       # breaks if the table itself is moved
    assert schedule.alpha_bar.device.type == "cpu" and schedule.alpha_bar.dtype == torch.float64
    assert schedule.alpha_bar_at(t.to("meta"), torch.zeros(3, 4, device="meta")).device.type == "meta"
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        ab = SCHEDULE.alpha_bar_at(t, torch.zeros(3, 4, dtype=dtype))
        assert torch.equal(ab[:, 0], SCHEDULE.alpha_bar[t].to(dtype)) and ab.dtype == dtype


class Devices(TorchDispatchMode):
    """Records (dtype, device) of all tensors that PyTorch computes inside, and which devices meet in an indexing."""
    def __init__(self):
        super().__init__()
        self.made, self.met = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if isinstance(result, torch.Tensor):
            self.made.add((result.dtype, result.device.type))
        if "index" in str(function):
            self.met.add((args[0].device.type, args[1][0].device.type))
        return result


def test_alpha_bar_is_looked_up_where_t_is():
    """Steps t on a GPU, for which `meta` stands. PyTorch takes no index from another device, and Apple's no float64."""
    schedule, t = NoiseSchedule(), torch.tensor([0, 999], device="meta")
    with Devices() as seen:
        schedule.alpha_bar_at(t, torch.zeros(2, 4, device="meta"))
    assert seen.met == {("meta", "meta")}                                    # breaks without .to(t.device)
    assert (torch.float64, "meta") not in seen.made                          # breaks if the table is always float64


def test_timesteps_are_plain_numbers():
    """A float64 tensor among them would be moved to each device, and Apple's GPU has none."""
    for spacing in ("trailing", "leading"):
        assert {tuple(map(type, row)) for row in SCHEDULE.timesteps(5, spacing)} == {(int, float, float)}


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25, 50])
def test_leading_steps_are_those_of_sd21s_scheduler(steps):
    """981, 961, ..., 1 for 50. Where do they end? Not at a clean picture: at alpha_bar[0]."""
    timesteps = SCHEDULE.timesteps(steps, "leading")
    assert [t for t, _, _ in timesteps] == load_file(REFERENCE / "ddim.safetensors")[f"timesteps.{steps}"].tolist()
    assert timesteps[-1][2] == SCHEDULE.alpha_bar[0]                         # breaks if they end at 1


def test_five_trailing_steps_written_out():
    """t = 999, 799, 599, 399, 199, and then z_0 itself; each step goes to the next one's alpha_bar."""
    timesteps = SCHEDULE.timesteps(5)
    assert [t for t, _, _ in timesteps] == [999, 799, 599, 399, 199]         # breaks if t is off by one
    assert [ab_next for _, _, ab_next in timesteps] == [ab for _, ab, _ in timesteps[1:]] + [1.0]


def test_trailing_steps_are_rounded_to_the_nearest():
    """A third of 1000 is no whole number: 1000, 666.7 and 333.3, less one each. So does diffusers."""
    assert [t for t, _, _ in SCHEDULE.timesteps(3)] == [999, 666, 332]       # breaks with int() for round()


@pytest.mark.parametrize("steps", [1, 3, 7, 999, 1000])
def test_any_number_of_steps_descends_from_999(steps):
    """Numbers that do not divide 1000, too: is each t smaller than the one before, the first 999, none below 0?"""
    ts = [t for t, _, _ in SCHEDULE.timesteps(steps)]
    assert len(ts) == steps and ts[0] == 999 and all(a > b for a, b in zip(ts, ts[1:])) and ts[-1] >= 0


@pytest.mark.parametrize("steps, spacing", [(0, "trailing"), (-3, "leading"), (1001, "trailing"), (1000, "leading"),
                                            (10, "even")])
def test_impossible_steps_are_refused(steps, spacing):
    """No steps; more steps than the table has rows; an unknown spacing."""
    with pytest.raises(ValueError, match="want"):
        SCHEDULE.timesteps(steps, spacing)                                   # breaks with 0 for 1


def test_eps_at_zero_terminal_snr_is_refused():
    """z_T is eps, whatever z_0 is: z_0 would be 0 / 0."""
    with pytest.raises(ValueError, match="v_prediction"):
        NoiseSchedule(rescale_betas_zero_snr=True)


def test_an_unknown_prediction_type_is_refused():
    """ "sample" is a third type that other schedulers know."""
    with pytest.raises(ValueError, match="prediction_type"):
        NoiseSchedule(prediction_type="sample")


def test_zero_terminal_snr_changes_the_last_alpha_bar_to_0_and_keeps_the_first():
    """Lin et al. 2024."""
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert schedule.alpha_bar[-1] == 0 and abs(schedule.alpha_bar[0] - SCHEDULE.alpha_bar[0]) < 1e-12


@pytest.mark.parametrize("steps", [1, 5])
def test_an_oracle_of_v_samples_from_zero_terminal_snr(steps):
    """z_T holds nothing of z_0. Does v tell it?"""
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    z_0, eps = normal(), normal(seed=1)

    def oracle(z_t, t):
        ab = schedule.alpha_bar_at(t, z_t)
        return ab ** 0.5 * eps - (1 - ab) ** 0.5 * z_0
    assert_close(last(ddim(oracle, eps, schedule.timesteps(steps), schedule)), z_0)  # breaks if v's signs are swapped


# ---- Eq. 3 and 4 ----

def test_eq_3_shifts_the_mean_and_nothing_else():
    """100,000 draws: mean lam z_c in every frame, variance 1."""
    z_c, eps_n = normal(2, 4, 1, 1, 1, seed=1), normal(2, 4, 3, 1, 100_000)
    eps = appearance_noise(eps_n, z_c, 0.3)
    assert_close(eps.mean(-1), (0.3 * z_c).squeeze(-1).expand(2, 4, 3, 1), atol=0.02, rtol=0)    # breaks: frames summed
    assert_close(eps.var(-1), torch.ones(2, 4, 3, 1, dtype=torch.float64), atol=0.03, rtol=0)    # breaks: renormalised


def test_eq_3_with_lam_0_is_plain_noise():
    """Bit for bit."""
    z_c, eps_n = normal(2, 4, 1, 5, 6, seed=1), normal()
    assert torch.equal(appearance_noise(eps_n, z_c, 0), eps_n)


def test_eq_4_solved_for_z_0():
    """Algebra: whatever eps is, does z_0 come back from it and z_t?"""
    z_0, eps, t = normal(), normal(seed=1), torch.tensor([0, 999])
    ab = SCHEDULE.alpha_bar_at(t, z_0)
    assert_close(SCHEDULE.predict_z0_eps(eps, add_noise(z_0, eps, ab), ab)[0], z_0)


def test_v_is_solved_for_z_0_and_eps():
    """The same for v = sqrt(ab) eps - sqrt(1 - ab) z_0."""
    z_0, eps, t = normal(), normal(seed=1), torch.tensor([0, 999])
    ab = SCHEDULE.alpha_bar_at(t, z_0)
    v = ab ** 0.5 * eps - (1 - ab) ** 0.5 * z_0
    schedule = NoiseSchedule(prediction_type="v_prediction")
    for predicted, expected in zip(schedule.predict_z0_eps(v, add_noise(z_0, eps, ab), ab), (z_0, eps), strict=True):
        assert_close(predicted, expected)


def test_eq_4_is_the_published_one():
    """Six steps t, against diffusers."""
    io = load_file(REFERENCE / "ddim.safetensors")
    for t, expected in zip(io["add_noise/t"], io["add_noise/xt"]):
        ab = SCHEDULE.alpha_bar_at(t[None], io["add_noise/x0"])
        assert_close(add_noise(io["add_noise/x0"], io["add_noise/noise"], ab), expected, atol=2e-6, rtol=2e-6)


def test_the_last_step_still_shows_seven_percent_of_z_0():
    """Why gamma exists: sqrt(alpha_bar[999]) = 0.0683."""
    z_T = add_noise(normal(), 0 * normal(), SCHEDULE.alpha_bar_at(torch.tensor([999, 999]), normal()))
    assert abs((z_T / normal()).mean().item() - 0.06826) < 1e-5


# ---- from noise back to z_0 ----

@both_solvers
@pytest.mark.parametrize("steps", [1, 2, 10, 50])
def test_an_oracle_that_remembers_eps_gets_z_0_back(steps, solver):
    """For any lam, in any number of steps. (It cannot notice a wrong t: it does not look at it.)"""
    z_0, eps_n, z_c = normal(), normal(seed=1), normal(2, 4, 1, 5, 6, seed=2)
    for lam in (0, 0.03, 2.0):
        eps = appearance_noise(eps_n, z_c, lam)
        timesteps = SCHEDULE.timesteps(steps)
        z_T = add_noise(z_0, eps, timesteps[0][1])
        assert_close(last(solver(lambda z, t: eps, z_T, timesteps, SCHEDULE)), z_0)     # breaks: alpha_bar off by one


@both_solvers
@pytest.mark.parametrize("steps", [5, 10])
def test_the_model_is_asked_at_these_steps_and_no_others(steps, solver):
    """Record t, one for each clip of the batch, in every call."""
    asked = []
    last(solver(lambda z, t: asked.append(t.tolist()) or z, normal(), SCHEDULE.timesteps(steps), SCHEDULE))
    assert asked == [[t, t] for t, _, _ in SCHEDULE.timesteps(steps)]


@both_solvers
def test_the_model_gets_t_on_the_device_of_z_t(solver):
    """`meta` stands for a GPU."""
    devices = []
    model = lambda z, t: devices.append(t.device.type) or z
    last(solver(model, torch.zeros(SHAPE, device="meta"), SCHEDULE.timesteps(2), SCHEDULE))
    assert devices == ["meta", "meta"]                                       # breaks without device=


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_follows_the_published_trajectory(eta):
    """Ten steps with a made-up network, against diffusers. eta = 1 adds the stored noise, in the last step too."""
    io = load_file(REFERENCE / "ddim.safetensors")
    states, variance = io[f"trajectory/eta{eta:.0f}/x"].double(), iter(io["trajectory/variance_noise"].double())
    model = lambda x, t: 0.1 * x + 0.01 * t.view(-1, 1, 1, 1) / 1000
    steps = ddim(model, states[0], SCHEDULE.timesteps(10, "leading"), SCHEDULE, eta=eta, noise=lambda: next(variance))
    for step, (z, expected) in enumerate(zip(steps, states[1:], strict=True)):
        assert (z - expected).abs().max() / expected.abs().max() < 2e-5, step       # breaks if sigma is inverted


def snr(ab):
    return ab / (1 - ab)


def test_eta_above_zero_keeps_the_mean_of_eq_3():
    """The table of fresh noise in docs/readings.md: z_0 = 0, z_c = 1, an oracle for the conditional mean of eps.
    What is E[z] at each step?

    Every distribution is Gaussian with variance 1 - alpha_bar around sqrt(1 - alpha_bar) lam, so E[z] follows from the
    means alone: noise() gives 0. Fresh noise of mean zero, without the shift, keeps only sqrt(SNR_T / SNR_s) of it.
    """
    lam, timesteps = 0.5, SCHEDULE.timesteps(50, "leading")
    ab_T = timesteps[0][1]
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    oracle = lambda z, t: z / (1 - SCHEDULE.alpha_bar_at(t, z)) ** 0.5       # z_0 = 0: all of z is noise
    for shift, survives in ((lam * one, lambda ab: 1.0), (0 * one, lambda ab: math.sqrt(snr(ab_T) / snr(ab)))):
        z_T = (1 - ab_T) ** 0.5 * lam * one
        states = ddim(oracle, z_T, timesteps, SCHEDULE, shift, eta=1.0, noise=lambda: 0 * one)
        for z, (_, _, ab) in zip(states, timesteps, strict=True):
            assert abs(z.item() / ((1 - ab) ** 0.5 * lam) - survives(ab)) < 1e-9    # breaks: eps instead of eps - shift


def test_how_much_of_the_mean_a_sampler_without_the_shift_keeps():
    """The same table: the fraction sqrt(SNR_T / SNR_s) at five of 50 steps."""
    timesteps = SCHEDULE.timesteps(50, "leading")
    ab_T = timesteps[0][1]
    fractions = {t: round(math.sqrt(snr(ab_T) / snr(ab)), 3) for t, ab, _ in timesteps if t in (961, 881, 781, 481, 1)}
    assert fractions == {961: 0.890, 881: 0.576, 781: 0.358, 481: 0.116, 1: 0.003}


def test_eta_above_zero_keeps_the_variance_too():
    """The same with real noise, 200,000 numbers: variance 1 - alpha_bar at every step, for eta = 0.5."""
    timesteps, g = SCHEDULE.timesteps(10), torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(1, 1, 1, 1, 200_000, generator=g, dtype=torch.float64)
    oracle = lambda z, t: z / (1 - SCHEDULE.alpha_bar_at(t, z)) ** 0.5
    z_T = (1 - timesteps[0][1]) ** 0.5 * (0.5 + noise())
    for z, (_, _, ab) in zip(ddim(oracle, z_T, timesteps[:-1], SCHEDULE, 0.5, eta=0.5, noise=noise), timesteps):
        assert abs(z.var().item() / (1 - ab) - 1) < 0.02 and abs(z.mean().item() / (1 - ab) ** 0.5 - 0.5) < 0.01


def test_half_of_eta_is_half_of_the_fresh_noise():
    """One step, with noise() of ones and of zeros. How much of the ones is in z?"""
    timesteps = SCHEDULE.timesteps(10)[:1]

    def fresh(eta):
        ones, zeros = (last(ddim(lambda z, t: z, normal(), timesteps, SCHEDULE, eta=eta, noise=lambda: x))
                       for x in (1.0, 0.0))
        return ones - zeros
    assert_close(fresh(0.5), fresh(1.0) / 2)                                 # breaks with the root of eta


@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_no_number_of_steps_makes_latents_complex(eta, spacing):
    """Zero terminal SNR, 1 to 999 steps. At eta 1 the first step keeps nothing of eps: the root of 0, or of -1e-16?"""
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    for steps in range(1, 1000):
        timesteps = schedule.timesteps(steps, spacing)[:1]
        z = last(ddim(lambda z_t, t: z_t, normal(1, 4, 1, 2, 2), timesteps, schedule, eta=eta, noise=lambda: 0.0))
        assert not z.is_complex() and z.isfinite().all(), steps              # breaks without max(0.0, ...)


def test_eta_zero_ignores_the_shift():
    """The ODE needs no change (Sec. 3.3): is the end the same with any shift?"""
    model = lambda z, t: 0.3 * z
    plain, shifted = (last(ddim(model, normal(), SCHEDULE.timesteps(7), SCHEDULE, shift))
                      for shift in (0.0, normal(seed=4)))
    assert_close(plain, shifted)


# Data z_0 ~ N(0.7, 0.5^2), of which the exact eps and the exact solution of the ODE are known.
MEAN, STD = 0.7, 0.5


def exact_eps(z, t, schedule=SCHEDULE):
    ab = schedule.alpha_bar_at(t, z)
    return (1 - ab) ** 0.5 * (z - ab ** 0.5 * MEAN) / (ab * STD**2 + 1 - ab)


def exact_flow(z_T, ab, start=SCHEDULE.alpha_bar[999].item()):
    """The ODE's z at alpha_bar = ab, from z_T at alpha_bar = start: every point keeps its quantile."""
    deviation = lambda ab: (ab * STD**2 + 1 - ab) ** 0.5
    return ab ** 0.5 * MEAN + deviation(ab) * (z_T - start ** 0.5 * MEAN) / deviation(start)


@both_solvers
def test_a_solver_finds_the_end_of_the_ode(solver):
    """500 steps: how far from the exact z_0?"""
    z_T = normal()
    z_0 = last(solver(exact_eps, z_T, SCHEDULE.timesteps(500), SCHEDULE))
    assert (z_0 - exact_flow(z_T, 1.0)).abs().max() < 0.02


def test_dpm_solver_is_of_second_order():
    """30 steps without the last, which goes to z_0 and is the same in both: how much closer is it than DDIM?"""
    z_T, timesteps = normal(), SCHEDULE.timesteps(30)[:-1]
    end = exact_flow(z_T, timesteps[-1][2])
    first, second = ((last(solver(exact_eps, z_T, timesteps, SCHEDULE)) - end).abs().mean()
                     for solver in (ddim, dpm_solver_pp))
    assert second < 0.3 * first                                              # breaks if d is always z_0


def test_dpm_solver_takes_z_0_from_the_middle_of_a_step():
    """A network whose z_0 is 5 + 3 lambda, at unequal steps. From the second step on, is d its value half a step on?"""
    lam = torch.tensor([-2.0, -1.4, 0.0, 0.3], dtype=torch.float64)
    schedule = NoiseSchedule()
    schedule.alpha_bar = ab = (2 * lam).sigmoid()                            # lambda = log(ab / (1 - ab)) / 2
    timesteps = list(zip(range(3), ab.tolist(), ab[1:].tolist()))
    model = lambda z, t: (z - ab[t[0]] ** 0.5 * (5 + 3 * lam[t[0]])) / (1 - ab[t[0]]) ** 0.5
    z = [normal(), *dpm_solver_pp(model, normal(), timesteps, schedule)]
    for i in (1, 2):
        h, ratio = lam[i + 1] - lam[i], ((1 - ab[i + 1]) / (1 - ab[i])) ** 0.5
        d = (z[i + 1] - ratio * z[i]) / (ab[i + 1] ** 0.5 * (1 - torch.exp(-h)))     # Algorithm 2, solved for D
        assert_close(d, (5 + 3 * (lam[i] + h / 2)).expand(SHAPE))            # breaks with another variable than lambda


def test_dpm_solver_keeps_its_order_at_unequal_steps():
    """lambda from -2 to 2, in turn by a short step and by one three times as long. Do twice as many steps leave a
    quarter of the error?"""
    def error(steps):
        lengths = torch.tensor([0.0] + [1.0, 3.0] * (steps // 2), dtype=torch.float64)
        schedule = NoiseSchedule()
        schedule.alpha_bar = (2 * (-2 + 4 * lengths.cumsum(0) / lengths.sum())).sigmoid()    # log(ab / (1 - ab)) / 2
        ab = schedule.alpha_bar.tolist()
        timesteps = list(zip(range(steps), ab, ab[1:]))
        z = last(dpm_solver_pp(lambda z, t: exact_eps(z, t, schedule), normal(), timesteps, schedule))
        return (z - exact_flow(normal(), ab[-1], ab[0])).abs().max()
    assert 3.5 < error(80) / error(160) < 4.5                                # breaks with h_before / h, or 3 for 2


def test_the_best_gamma_is_what_the_last_step_shows_of_z_c():
    """Sec. 4.2.2 explained: frames = rho z_c + the rest. From which mean of z_T does the exact sampler end at rho z_c?

    docs/proof.md: gamma* = sqrt(ab) rho + (sqrt(1 - ab) - 1) lam, about 0.068 rho, whatever lam is.
    """
    rho, ab = 0.44, SCHEDULE.alpha_bar[999].item()
    var = 1 - rho ** 2
    one, timesteps = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64), SCHEDULE.timesteps(1000)
    for lam in (0.0, 0.03, 0.1):
        def exact(z, t):                                                     # the mean of eps given z, for z_c = 1
            a = SCHEDULE.alpha_bar_at(t, z)
            return lam + (1 - a) ** 0.5 * (z - a ** 0.5 * rho - (1 - a) ** 0.5 * lam) / (a * var + 1 - a)
        end = lambda gamma: last(ddim(exact, (lam + gamma) * one, timesteps, SCHEDULE)).item()
        slope = (end(0.1) - end(0.0)) / 0.1                                  # linear in gamma
        best = (rho - end(0.0)) / slope
        assert abs(best - (ab ** 0.5 * rho + ((1 - ab) ** 0.5 - 1) * lam)) < 2e-4 and abs(best - 0.030) < 1e-3


# ---- guidance ----

@pytest.mark.parametrize("scale, expected", [(0, 1.0), (1, 3.0), (2, 5.0), (7.5, 16.0)])
def test_guidance_extrapolates_from_the_empty_text(scale, expected):
    """Scale 0 is the unconditional model, 1 the conditional one, and 2 twice as far from the first."""
    text, empty = torch.full((2, 5, 6), 3.0), torch.full((2, 5, 6), 1.0)
    model = lambda z, t, text: z + text.mean((1, 2)).view(-1, 1, 1, 1, 1)
    z, t = torch.zeros(SHAPE), torch.tensor([5, 5])
    guided = guide(model, scale, text, empty)
    assert torch.equal(guided(z, t), torch.full(SHAPE, expected))            # breaks with cond + w (cond - uncond)


def test_scale_1_asks_the_model_once():
    """The text and z_t as they are, no batch of twice the size: half the time."""
    z_t, t, (text, empty) = normal(), torch.tensor([7, 9]), normal(2, 2, 5, 6)
    guided = guide(lambda *inputs: inputs, 1.0, text, empty)
    assert all(a is b for a, b in zip(guided(z_t, t), (z_t, t, text), strict=True))      # breaks without the `if`


def test_guidance_takes_any_number_of_clips():
    """Three clips, so six rows: halves, not pairs."""
    text, empty = torch.full((3, 5, 6), 3.0), torch.full((3, 5, 6), 1.0)
    model = lambda z, t, text: z + text.mean((1, 2)).view(-1, 1, 1, 1, 1)
    z_t = normal(3, 4, 1, 2, 2)
    assert_close(guide(model, 2.0, text, empty)(z_t, torch.tensor([5, 5, 5])), z_t + 5)


def test_both_passes_of_guidance_see_the_same_z_t_and_t():
    """They differ in the text alone, and the empty one is first."""
    asked, z_t, t, (text, empty) = [], normal(), torch.tensor([7, 9]), normal(2, 2, 5, 6)
    guide(lambda *inputs: asked.extend(inputs) or inputs[0], 7.5, text, empty)(z_t, t)
    for given, once in zip(asked, ([z_t, z_t], [t, t], [empty, text]), strict=True):
        assert torch.equal(given, torch.cat(once))


def test_guidance_leaves_the_prior_alone():
    """Both passes give lam z_c. What is left of it at a large scale? Exactly lam z_c."""
    z_c = normal(2, 4, 1, 5, 6)
    text, t = torch.zeros(2, 5, 6), torch.tensor([1, 1])
    model = lambda z, t, text: torch.cat([0.03 * z_c.expand(SHAPE)] * (len(z) // 2))
    assert_close(guide(model, 12.0, text, text)(normal(), t), 0.03 * z_c.expand(SHAPE))


def test_a_schedule_that_ends_at_zero_is_refused():
    """Betas so large that alpha_bar underflows: z_0 = (z_t - eps) / 0."""
    with pytest.raises(ValueError, match="ends at 0"):
        NoiseSchedule(beta_start=0.9, beta_end=0.999, num_train_timesteps=2000)
