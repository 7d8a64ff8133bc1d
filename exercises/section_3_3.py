"""Exercises of Sec. 3.3: the appearance noise prior, Eq. 3-5, and the way back from noise."""

import torch

from exercises.catalogue import close, exercise, last, normal
from sampler import NoiseSchedule

SCHEDULE = NoiseSchedule()
ONE = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)


@exercise("3.3", "", "sampler.py", "NoiseSchedule.__init__", 2, 15, "SD2.1's table alpha_bar.",
          "Betas are even in their square roots, float64; alpha_bar is the product of all 1 - beta so far. Zero "
          "terminal SNR shifts and stretches sqrt(alpha_bar): the first stays, the last is 0. End with "
          "self.to('cpu').")
def schedule(sampler):
    """The published ends of the table; the linear schedule has others."""
    made = sampler.NoiseSchedule()
    ab = made.alpha_bar
    assert abs(ab[-1] - 0.0015790) > 1e-6, "yours is the linear one; SD2.1's betas are even in their square roots"
    assert abs(ab[0] - 0.99915) < 1e-6, "alpha_bar[0] is 1 - 0.00085; did you square the roots again?"
    assert abs(ab[-1] - 0.0046600985) < 1e-7, "alpha_bar[t] is the product of 1 - beta up to t; the last is 0.00466"
    assert ab.dtype == torch.float64, "want the table in float64: small differences count near t = 0"
    close(made.alpha_bar_at(torch.tensor([5]), ONE.float()).double(), ab[5] * ONE, "end with self.to('cpu')")
    assert made.prediction_type == "epsilon", "keep prediction_type: predict_z0_eps asks for it"
    zero = sampler.NoiseSchedule(prediction_type="v_prediction", rescale_betas_zero_snr=True).alpha_bar
    assert abs(zero[-1]) < 1e-12 and abs(zero[0] - ab[0]) < 1e-12, (
        "zero terminal SNR shifts and stretches: the last alpha_bar becomes 0, the first stays")
    for wrong in ({"rescale_betas_zero_snr": True}, {"prediction_type": "sample"}):
        try:
            sampler.NoiseSchedule(**wrong)
        except ValueError:
            continue
        raise AssertionError(f"want ValueError for {wrong}: from eps at zero terminal SNR, z_0 would be 0 / 0")


@exercise("3.3", "Eq. 3", "sampler.py", "appearance_noise", 1, 5, "Noise with the key frame in its mean.",
          "z_c spreads over the frames by itself.")
def eq3(sampler):
    """The part of z_c, then the part of eps_n: it is not renormalised."""
    z_c, eps_n = normal(2, 4, 1, 5, 6), normal(2, 4, 3, 5, 6, seed=2)
    given, mean = eps_n.clone(), sampler.appearance_noise(0 * eps_n, z_c, 0.3)
    assert not mean.allclose(z_c.expand_as(mean)), "lam multiplies z_c, not eps_n"
    close(sampler.appearance_noise(eps_n, 0 * z_c, 0.3), eps_n, "eps_n comes in whole: no renormalisation, no mix")
    close(mean, 0.3 * torch.cat([z_c] * 3, 2), "the mean of every frame is lam z_c, pixel by pixel")
    sampler.appearance_noise(eps_n, z_c, 0.3)
    assert eps_n.equal(given), "return a new tensor: the caller's eps_n has to stay as it is"


@exercise("3.3", "Eq. 4", "sampler.py", "add_noise", 1, 5, "z_t from z_0 and eps.",
          "The squares of both factors add up to 1.")
def eq4(sampler):
    """alpha_bar = 0.36: 0.6 and 0.8. Without roots: 0.36 and 0.64."""
    z_0, eps = (sampler.add_noise(*(torch.tensor(x, dtype=torch.float64) for x in (z, e, 0.36))).item()
                for z, e in ((1.0, 0.0), (0.0, 1.0)))
    assert abs(z_0 - 0.36) > 1e-6, "the square roots are missing"
    assert abs(z_0 - 0.8) > 1e-6, "the factors of z_0 and eps are exchanged: alpha_bar is large at small t"
    assert abs(z_0 - 0.6) < 1e-6, "z_0 has the factor sqrt(alpha_bar)"
    assert abs(eps - 0.8) < 1e-6, "eps has the factor sqrt(1 - alpha_bar), so that the squares add up to 1"


@exercise("3.3", "Fig. 2", "sampler.py", "NoiseSchedule.predict_z0_eps", 2, 15,
          "Eq. 4 solved for z_0, from eps or from v.",
          "v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) z_0. Two equations, two unknowns.")
def z0(sampler):
    """There and back, for eps and for v. Fig. 2 draws z_t - eps."""
    z_0, eps, ab = normal(2, 4, 3, 2, 2), normal(2, 4, 3, 2, 2, seed=2), 0.36
    z_t, v = 0.6 * z_0 + 0.8 * eps, 0.6 * eps - 0.8 * z_0
    got, same = sampler.NoiseSchedule().predict_z0_eps(eps, z_t, ab)
    assert not got.allclose(z_t - eps), "Fig. 2 is a sketch: z_t - eps leaves the factors of Eq. 4 out"
    assert not got.allclose(0.6 * z_0), "divide by sqrt(alpha_bar) too"
    close(got, z_0, "solve Eq. 4 for z_0: (z_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)")
    close(same, eps, "with epsilon, the network's output is eps itself")
    got, noise = sampler.NoiseSchedule(prediction_type="v_prediction").predict_z0_eps(v, z_t, ab)
    close(got, z_0, "from v, z_0 = sqrt(alpha_bar) z_t - sqrt(1 - alpha_bar) v; check the sign")
    close(noise, eps, "from v, eps = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) z_t; check the sign")


@exercise("3.3", "Eq. 5", "train.py", "loss", 2, 15, "The loss: which noise is the target?",
          "alpha_bar_at, appearance_noise, add_noise; f_theta in text's dtype; the mean squared error in float32; "
          "weighting v divides each error by alpha_bar.")
def eq5(train):
    """A network that writes down its inputs, and answers eps, eps_n or eps + 2. The target is not eps_n."""
    z_0, eps_n, text, asked = normal(2, 4, 3, 4, 6), normal(2, 4, 3, 4, 6, seed=2), normal(2, 5, 6), []
    z_c, t = z_0[:, :, 1:2], torch.tensor([2, 600])
    eps, ab = 0.3 * z_c + eps_n, SCHEDULE.alpha_bar_at(t, z_0)

    def loss(answer, **more):
        f_theta = lambda *inputs: asked.append(inputs) or answer
        return train.loss(f_theta, z_0, z_c, text, t, eps_n, SCHEDULE, lam=0.3, **more).double()
    right, ignorant, two_off = loss(eps), loss(eps_n), loss(eps + 2)
    z_t, *rest = asked[0]
    assert not z_t.allclose(ab ** 0.5 * z_0 + (1 - ab) ** 0.5 * eps_n), "z_t holds all of Eq. 3; yours lacks lam z_c"
    close(z_t, ab ** 0.5 * z_0 + (1 - ab) ** 0.5 * eps, "z_t is Eq. 4 at alpha_bar_at(t, z_0); t off by one?", 1e-7)
    assert all(got.equal(want) for got, want in zip(rest, (t, z_c, text))), "want f_theta(z_t, t, condition, text)"
    assert right < 1e-6 < ignorant, "the target is the total noise eps = lam z_c + eps_n of Eq. 3, not eps_n"
    assert two_off < 100, "want the mean over all numbers, not the sum"
    close(two_off, torch.tensor(4.0).double(), "want the squared error: a network that is 2 off has loss 4")
    close(loss(eps + 2, weighting="v"), (4 / ab).mean(), "weighting v divides each error by alpha_bar")


@exercise("3.3", "guidance", "sampler.py", "guide", 1, 10, "Classifier-free guidance: one batch, two texts.",
          "Concatenate, call the model once, chunk. At scale 1 the conditional pass alone is enough.")
def guidance(sampler):
    """A model that answers 1 for the empty text, 3 for the other. The other convention starts from cond."""
    empty, z, t = torch.ones(2, 5, 6), torch.zeros(2, 4, 3, 2, 2), torch.tensor([5, 9])
    model = lambda z, t, text: z + 0 * t.view(-1, 1, 1, 1, 1) + text.mean((1, 2)).view(-1, 1, 1, 1, 1)
    at = lambda scale: sampler.guide(model, scale, 3 * empty, empty)(z, t).unique().tolist()
    assert at(1) == [3.0], "scale 1 is the model with the text alone"
    assert at(3) != [9.0], "start from uncond, not from cond: uncond + scale (cond - uncond)"
    assert at(0) == [1.0], "scale 0 ignores the text: uncond is the pass with the empty text, cond that with the text"
    assert at(3) == [7.0], "scale multiplies the difference cond - uncond; at 3 it goes three times as far"


def check_round_trip(solver):
    """A model that remembers eps: does z_0 come back, and is the model asked at the right t?"""
    z_0, eps, asked = normal(2, 4, 3, 2, 2), normal(2, 4, 3, 2, 2, seed=2), []
    for steps in (1, 2, 10):
        timesteps = SCHEDULE.timesteps(steps)
        z_T = timesteps[0][1] ** 0.5 * z_0 + (1 - timesteps[0][1]) ** 0.5 * eps
        states = list(solver(lambda z, t: asked.append(torch.as_tensor(t).tolist()) or eps, z_T, timesteps, SCHEDULE))
        assert len(states) == steps, "yield z_t after each step, z_0 last"
        close(states[-1], z_0, f"a model that knows eps must give z_0 back, in {steps} steps too; each step goes to "
              "alpha_bar at the next t")
    assert asked[-10:] == [[t, t] for t, _, _ in timesteps], "the model gets t [b], the step that z_t is at"


@exercise("3.3", "ODE samplers", "sampler.py", "ddim", 3, 30, "DDIM, and the mean that fresh noise needs.",
          "predict_z0_eps; sigma = eta sqrt((1 - ab_next) / (1 - ab) (1 - ab / ab_next)). Only eps - shift shrinks to "
          "sqrt(1 - ab_next - sigma^2); the whole mean sqrt(1 - ab_next) shift stays. Yield each z_t.")
def ddim(sampler):
    """With eta = 1, what is left of the mean lam z_c? Neither zero mean nor the full mean of fresh noise keeps it."""
    check_round_trip(sampler.ddim)
    timesteps, lam = SCHEDULE.timesteps(50, "leading"), 0.5
    oracle = lambda z, t: z / (1 - SCHEDULE.alpha_bar_at(t, z)) ** 0.5       # z_0 = 0: all of z is noise
    z_T = (1 - timesteps[0][1]) ** 0.5 * lam * ONE
    states = sampler.ddim(oracle, z_T, timesteps, SCHEDULE, lam * ONE, eta=1.0, noise=lambda: 0 * ONE)
    shares = [z.item() / ((1 - ab_next) ** 0.5 * lam) for z, (_, _, ab_next) in zip(states, timesteps)]
    assert min(shares) > 1 - 1e-6, ("fresh noise with zero mean forgets the prior: at eta = 1, "
                                    f"{min(shares):.3f} of the mean of Eq. 3 is left; add shift back whole")
    assert max(shares) < 1 + 1e-6, ("fresh noise with the full mean lam z_c overshoots: at eta = 1, the mean grows to "
                                    f"{max(shares):.2f} times that of Eq. 3; shift is the mean of all noise together")
    step, (_, ab, ab_next) = timesteps[9:10], timesteps[9]
    one_step = lambda eps, fresh: last(sampler.ddim(lambda z, t: eps * ONE, 0 * ONE, step, SCHEDULE, 0.0, 0.5,
                                                    lambda: fresh * ONE)).item()
    sigma, want = one_step(0, 1), 0.5 * ((1 - ab_next) / (1 - ab) * (1 - ab / ab_next)) ** 0.5
    assert abs(sigma - want) < 1e-6, "at eta > 0 add sigma * noise(); sigma is eta times the root of DDPM's variance"
    kept = one_step(1, 0) + ab_next ** 0.5 * ((1 - ab) / ab) ** 0.5          # z_t = 0 and eps = 1 make z_0 negative
    assert abs(kept ** 2 + sigma ** 2 - (1 - ab_next)) < 1e-6, (
        "kept and fresh noise have the variance 1 - ab_next together: take sigma^2 off the kept part")


@exercise("3.3", "ODE samplers", "sampler.py", "dpm_solver_pp", 3, 40, "DPM-Solver++ (2M), a solver of second order.",
          "lambda = log(ab / (1 - ab)) / 2, h its change. d is z_0, from the second step on extrapolated by half a "
          "step from the z_0 before. z_t becomes ratio z_t + sqrt(ab_next) (1 - exp(-h)) d, with ratio = sqrt((1 - "
          "ab_next) / (1 - ab)). The last step, to ab_next = 1, gives z_0.")
def dpm(sampler):
    """A network whose z_0 is 5 + 3 lambda, at unequal steps. Is d its value half a step on? z_0 is first order."""
    check_round_trip(sampler.dpm_solver_pp)
    lam, schedule = torch.tensor([-2.0, -1.4, 0.0, 0.3], dtype=torch.float64), NoiseSchedule()
    schedule.alpha_bar = ab = (2 * lam).sigmoid()                            # lambda = log(ab / (1 - ab)) / 2
    model = lambda z, t: (z - ab[t[0]] ** 0.5 * (5 + 3 * lam[t[0]])) / (1 - ab[t[0]]) ** 0.5
    z = [ONE, *sampler.dpm_solver_pp(model, ONE, list(zip(range(3), ab.tolist(), ab[1:].tolist())), schedule)]
    for i in (1, 2):
        h, ratio = lam[i + 1] - lam[i], ((1 - ab[i + 1]) / (1 - ab[i])) ** 0.5
        d = (z[i + 1] - ratio * z[i]) / (ab[i + 1] ** 0.5 * (1 - torch.exp(-h)))         # Algorithm 2, solved for d
        assert not d.allclose(5 + 3 * lam[i] * ONE), "d is always z_0: a solver of first order, as DDIM is"
        close(d, (5 + 3 * (lam[i] + h / 2)) * ONE, "d is z_0 half a step on, along the line through this z_0 and the "
              "one before: z_0 + h / (2 h_before) (z_0 - z_0_before)")
