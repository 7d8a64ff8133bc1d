"""Exercises for sampler.py: Eq. 3-4, Sec. 4.2.2, and the proof that the paper leaves to its supplement, in numbers."""
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from sampler import NoiseSchedule, add_noise, appearance_noise, ddim, dpm_solver_pp, guide

REFERENCE = Path(__file__).parent / "reference"
SCHEDULE = NoiseSchedule()
SHAPE = (2, 4, 3, 5, 6)                                                      # b, c, n, h, w


def normal(*shape, seed=0):
    return torch.randn(shape or SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(states):
    for z in states:
        pass
    return z


# ---- the schedule

def test_the_schedule_is_sd21s_and_not_the_linear_one():
    """The ledger's constants, to seven digits. Betas even themselves, not in their roots, would end at 0.001579."""
    ab = SCHEDULE.alpha_bar
    for t, value in ((999, 0.0046600985), (981, 0.0057755), (961, 0.0072817), (0, 0.99915)):
        assert abs(ab[t].item() - value) < 5e-8 + 5e-6 * value               # breaks without the square roots
    assert abs((ab[999] / (1 - ab[999])).sqrt().item() - 0.0684245) < 1e-7   # k_T


def test_the_table_is_the_published_one():
    """All thousand entries, against diffusers (float32)."""
    published = load_file(REFERENCE / "ddim.safetensors")["alphas_cumprod"]
    assert_close(SCHEDULE.alpha_bar.float(), published, rtol=2e-6, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25, 50])
def test_leading_steps_are_those_of_sd21s_scheduler(steps):
    """981, 961, ..., 1 for 50. Where does the path end? Not at a clean picture: at alpha_bar[0]."""
    path = SCHEDULE.path(steps, "leading")
    assert [t for t, _, _ in path] == load_file(REFERENCE / "ddim.safetensors")[f"timesteps.{steps}"].tolist()
    assert path[-1][2] == SCHEDULE.alpha_bar[0]                              # breaks if the path ends at 1


def test_five_trailing_steps_written_out():
    """t = 999, 799, 599, 399, 199, and then z_0 itself; each step goes to the next one's alpha_bar."""
    path = SCHEDULE.path(5)
    assert [t for t, _, _ in path] == [999, 799, 599, 399, 199]              # breaks if t is off by one
    assert [after for _, _, after in path] == [ab for _, ab, _ in path[1:]] + [1.0]


@pytest.mark.parametrize("steps", [1, 3, 7, 999, 1000])
def test_any_number_of_steps_descends_from_999(steps):
    """A number that does not divide 1000 as well: strictly down, first 999, never below 0."""
    ts = [t for t, _, _ in SCHEDULE.path(steps)]
    assert len(ts) == steps and ts[0] == 999 and all(a > b for a, b in zip(ts, ts[1:])) and ts[-1] >= 0


def test_what_cannot_be_is_refused():
    """No steps; more steps than the table has; a spacing nobody knows; eps at zero terminal SNR, which is 0 / 0."""
    for steps, spacing in ((0, "trailing"), (-3, "leading"), (1001, "trailing"), (1000, "leading"), (10, "even")):
        with pytest.raises(ValueError):
            SCHEDULE.path(steps, spacing)
    with pytest.raises(ValueError, match="v_prediction"):
        NoiseSchedule(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="prediction_type"):
        NoiseSchedule(prediction_type="sample")


def test_zero_terminal_snr_ends_at_zero_and_samples_with_v():
    """Lin et al. 2024: the last alpha_bar is 0, the first as it was; an oracle of v still finds z_0 in one step."""
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    assert schedule.alpha_bar[-1] == 0 and abs(schedule.alpha_bar[0] - SCHEDULE.alpha_bar[0]) < 1e-12
    z_0, eps = normal(), normal(seed=1)
    for steps in (1, 5):
        def oracle(z_t, t):
            ab = schedule.at(t, z_t)
            return ab ** 0.5 * eps - (1 - ab) ** 0.5 * z_0
        assert_close(last(ddim(oracle, eps, schedule.path(steps), schedule)), z_0)      # breaks: v's signs swapped


# ---- Eq. 3 and 4

def test_eq_3_shifts_the_mean_and_nothing_else():
    """100,000 draws: mean lam z_c in every frame, variance 1; lam = 0 is plain noise."""
    z_c, eps_n = normal(2, 4, 1, 1, 1, seed=1), normal(2, 4, 3, 1, 100_000)
    eps = appearance_noise(eps_n, z_c, 0.3)
    assert_close(eps.mean(-1), (0.3 * z_c).squeeze(-1).expand(2, 4, 3, 1), atol=0.02, rtol=0)    # breaks: frames summed
    assert_close(eps.var(-1), torch.ones(2, 4, 3, 1, dtype=torch.float64), atol=0.03, rtol=0)    # breaks: renormalised
    assert torch.equal(appearance_noise(eps_n, z_c, 0), eps_n)


def test_eq_4_is_solved_for_z_0_by_split():
    """Algebra: whatever eps is, z_0 comes back."""
    z_0, eps, t = normal(), normal(seed=1), torch.tensor([0, 999])
    ab = SCHEDULE.at(t, z_0)
    z_t = add_noise(z_0, eps, ab)
    assert_close(SCHEDULE.split(eps, z_t, ab)[0], z_0)
    v = NoiseSchedule(prediction_type="v_prediction")
    for ours, expected in zip(v.split(ab ** 0.5 * eps - (1 - ab) ** 0.5 * z_0, z_t, ab), (z_0, eps)):
        assert_close(ours, expected)


def test_eq_4_is_the_published_one():
    """Six steps t, against diffusers."""
    io = load_file(REFERENCE / "ddim.safetensors")
    for t, expected in zip(io["add_noise/t"], io["add_noise/xt"]):
        z_t = add_noise(io["add_noise/x0"], io["add_noise/noise"], SCHEDULE.at(t[None], io["add_noise/x0"]))
        assert_close(z_t, expected, atol=2e-6, rtol=2e-6)


def test_the_last_step_still_shows_seven_percent_of_z_0():
    """Why gamma exists: sqrt(alpha_bar[999]) = 0.0683."""
    z_T = add_noise(normal(), 0 * normal(), SCHEDULE.at(torch.tensor([999, 999]), normal()))
    assert abs((z_T / normal()).mean().item() - 0.06826) < 1e-5


# ---- the ways back

@pytest.mark.parametrize("steps", [1, 2, 10, 50])
@pytest.mark.parametrize("solver", [ddim, dpm_solver_pp])
def test_an_oracle_that_remembers_eps_gets_z_0_back(steps, solver):
    """For any lam, in any number of steps. (It cannot notice a wrong t: it does not look at it.)"""
    z_0, eps_n, z_c = normal(), normal(seed=1), normal(2, 4, 1, 5, 6, seed=2)
    for lam in (0, 0.03, 2.0):
        eps = appearance_noise(eps_n, z_c, lam)
        path = SCHEDULE.path(steps)
        z_T = add_noise(z_0, eps, path[0][1])
        assert_close(last(solver(lambda z, t: eps, z_T, path, SCHEDULE)), z_0)          # breaks: alpha_bar off by one


@pytest.mark.parametrize("steps", [5, 10])
@pytest.mark.parametrize("solver", [ddim, dpm_solver_pp])
def test_the_model_is_asked_at_the_steps_of_the_path(steps, solver):
    """Write down what it is asked. A whole batch at each."""
    asked = []
    last(solver(lambda z, t: asked.append(t.tolist()) or z, normal(), SCHEDULE.path(steps), SCHEDULE))
    assert asked == [[t, t] for t, _, _ in SCHEDULE.path(steps)]


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_follows_the_published_trajectory(eta):
    """Ten steps with a made-up network, against diffusers; eta = 1 adds the stored noise, on the last step too."""
    io = load_file(REFERENCE / "ddim.safetensors")
    states, variance = io[f"trajectory/eta{eta:.0f}/x"].double(), iter(io["trajectory/variance_noise"].double())
    model = lambda x, t: 0.1 * x + 0.01 * t.view(-1, 1, 1, 1) / 1000
    ours = ddim(model, states[0], SCHEDULE.path(10, "leading"), SCHEDULE, eta=eta, noise=lambda: next(variance))
    for step, (z, expected) in enumerate(zip(ours, states[1:], strict=True)):
        assert (z - expected).abs().max() / expected.abs().max() < 2e-5, step           # breaks: sigma's ratio inverted


def test_eta_above_zero_keeps_the_mean_of_eq_3():
    """The ledger's table 2.2. z_0 = 0, z_c = 1, an oracle for the conditional mean of eps: what is E[z] on the way?

    Every distribution is Gaussian with variance 1 - alpha_bar around sqrt(1 - alpha_bar) lam, so E[z] follows from the
    means alone: noise() gives 0. Zero-mean fresh noise without the shift keeps only sqrt(SNR_T / SNR_s) of it.
    """
    lam, path = 0.5, SCHEDULE.path(50, "leading")
    one = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    oracle = lambda z, t: z / (1 - SCHEDULE.at(t, z)) ** 0.5                 # z_0 = 0: all of z is noise
    for shift, survives in ((lam * one, lambda ab: 1.0),
                            (0 * one, lambda ab: math.sqrt(path[0][1] / (1 - path[0][1]) / (ab / (1 - ab))))):
        z_T = (1 - path[0][1]) ** 0.5 * lam * one
        for z, (_, _, ab) in zip(ddim(oracle, z_T, path, SCHEDULE, shift, eta=1.0, noise=lambda: 0 * one), path):
            assert abs(z.item() / ((1 - ab) ** 0.5 * lam) - survives(ab)) < 1e-9    # breaks: eps - shift -> eps
    fractions = {s: round(math.sqrt(path[0][1] / (1 - path[0][1]) / (ab / (1 - ab))), 3)
                 for s, ab, _ in path if s in (961, 881, 781, 481, 1)}
    assert fractions == {961: 0.890, 881: 0.576, 781: 0.358, 481: 0.116, 1: 0.003}


def test_eta_above_zero_keeps_the_variance_too():
    """The same with real noise, 200,000 numbers: variance 1 - alpha_bar at every step, for eta = 0.5."""
    path, g = SCHEDULE.path(10), torch.Generator().manual_seed(0)
    fresh = lambda: torch.randn(1, 1, 1, 1, 200_000, generator=g, dtype=torch.float64)
    oracle = lambda z, t: z / (1 - SCHEDULE.at(t, z)) ** 0.5
    z_T = (1 - path[0][1]) ** 0.5 * (0.5 + fresh())
    for z, (_, _, ab) in zip(ddim(oracle, z_T, path[:-1], SCHEDULE, 0.5, eta=0.5, noise=fresh), path):
        assert abs(z.var().item() / (1 - ab) - 1) < 0.02 and abs(z.mean().item() / (1 - ab) ** 0.5 - 0.5) < 0.01


def test_eta_zero_ignores_the_shift():
    """The ODE needs no change (Sec. 3.3): any shift, the same trajectory."""
    model = lambda z, t: 0.3 * z
    plain, shifted = (last(ddim(model, normal(), SCHEDULE.path(7), SCHEDULE, shift)) for shift in (0.0, normal(seed=4)))
    assert_close(plain, shifted)


def test_both_solvers_find_the_same_end_of_the_ode():
    """Data N(0.7, 0.5^2): the exact eps is known, so both must agree with each other and with the exact flow."""
    mean, std = 0.7, 0.5

    def exact(z, t):
        ab = SCHEDULE.at(t, z)
        return (1 - ab) ** 0.5 * (z - ab ** 0.5 * mean) / (ab * std**2 + 1 - ab)

    def truth(ab):                                                           # the flow keeps every point's quantile
        spread = lambda ab: (ab * std**2 + 1 - ab) ** 0.5
        return ab ** 0.5 * mean + spread(ab) * (z_T - start ** 0.5 * mean) / spread(start)
    z_T, start = normal(), SCHEDULE.alpha_bar[999].item()
    for solver in (ddim, dpm_solver_pp):
        assert (last(solver(exact, z_T, SCHEDULE.path(500), SCHEDULE)) - truth(1.0)).abs().max() < 0.02
    rough = SCHEDULE.path(30)[:-1]                                           # both end alike, with a step to z_0
    end = truth(rough[-1][2])
    first, second = ((last(s(exact, z_T, rough, SCHEDULE)) - end).abs().mean() for s in (ddim, dpm_solver_pp))
    assert second < 0.3 * first                                              # breaks if its second order is left out


def test_the_best_gamma_is_what_the_last_step_shows_of_z_c():
    """Sec. 4.2.2 explained: frames = rho z_c + the rest. Which start mean lets the exact sampler end at rho z_c?

    ledger 2.3: gamma* = sqrt(ab) rho + (sqrt(1 - ab) - 1) lam, about 0.068 rho, whatever lam is.
    """
    rho, ab = 0.44, SCHEDULE.alpha_bar[999].item()
    var = 1 - rho ** 2
    one, path = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64), SCHEDULE.path(1000)
    for lam in (0.0, 0.03, 0.1):
        def exact(z, t):                                                     # the mean of eps given z, z_c = 1
            a = SCHEDULE.at(t, z)
            return lam + (1 - a) ** 0.5 * (z - a ** 0.5 * rho - (1 - a) ** 0.5 * lam) / (a * var + 1 - a)
        end = lambda gamma: last(ddim(exact, (lam + gamma) * one, path, SCHEDULE)).item()
        slope = (end(0.1) - end(0.0)) / 0.1                                  # linear in gamma
        best = (rho - end(0.0)) / slope
        assert abs(best - (ab ** 0.5 * rho + ((1 - ab) ** 0.5 - 1) * lam)) < 2e-4 and abs(best - 0.030) < 1e-3


def test_guidance_extrapolates_from_the_empty_text():
    """Scale 0 is the unconditional model, 1 the conditional; 2 as far again. Both in one batch, in their own rows."""
    text, empty = torch.full((2, 5, 6), 3.0), torch.full((2, 5, 6), 1.0)
    model = lambda z, t, text: z + text.mean((1, 2)).view(-1, 1, 1, 1, 1)
    z, t = torch.zeros(SHAPE), torch.tensor([5, 5])
    for scale, expected in ((0, 1.0), (1, 3.0), (2, 5.0), (7.5, 16.0)):      # breaks with cond + w (cond - uncond)
        assert torch.equal(guide(model, scale, text, empty)(z, t), torch.full(SHAPE, expected))


def test_guidance_leaves_the_prior_alone():
    """ledger 2.4. Both branches carry lam z_c: what is left of it behind any scale? Exactly lam z_c."""
    z_c = normal(2, 4, 1, 5, 6)
    text, t = torch.zeros(2, 5, 6), torch.tensor([1, 1])
    model = lambda z, t, text: torch.cat([0.03 * z_c.expand(SHAPE)] * (len(z) // 2))
    assert_close(guide(model, 12.0, text, text)(normal(), t), 0.03 * z_c.expand(SHAPE))
