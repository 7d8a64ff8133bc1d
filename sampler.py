"""Noise, and the way back from it: Sec. 3.3, Eq. 3-4, Sec. 4.2.2, Fig. 6.

in    latents z_0, z_t, eps [b, 4, n, h, w], key-frame latents z_c [b, 4, 1, h, w] or [b, 4, n, h, w], steps t [b]
defines  NoiseSchedule, appearance_noise (Eq. 3), add_noise (Eq. 4), guide, ddim, dpm_solver_pp, SAMPLERS

Eq. 3 shifts the mean of the noise by lam * z_c, at every step t. Divide Eq. 4 by sqrt(alpha_bar) and write s for
sqrt(1 / alpha_bar - 1): z_t / sqrt(alpha_bar) = z_0 + s eps. The shift is part of eps, so the ODE back to z_0 keeps its
form, with the total noise eps in it. A deterministic sampler needs only another start. (The paper leaves the proof to
its supplement.) A sampler that adds fresh noise must give it the right mean: see `ddim`.

our reading
      - Guidance drops the text only. z_c and the noise prior stay in both passes, or lam would grow with the scale.
      - `trailing` steps (999, 979, ...) start where training ends and arrive at z_0 itself. `leading` steps (981, 961,
        ...) are those of SD2.1's own scheduler, which stops at alpha_bar[0] = 0.99915.
      - gamma only corrects the start: at t = 999 SD's schedule still shows the network 0.068 z_0, and gamma z_c
        replaces it. lam belongs to the training, so it is fixed with the weights.
"""

import torch


class NoiseSchedule:
    """SD2.1's table alpha_bar [1000], float64: sqrt(beta) is evenly spaced. Named as in `scheduler_config.json`.

    `prediction_type` names the network's output: "epsilon" (Eq. 5) or "v_prediction" (SD2.1's 768-pixel sibling).
    `rescale_betas_zero_snr` shifts and stretches sqrt(alpha_bar) to end at exactly 0 (Lin et al. 2024). Then z_T holds
    nothing of z_0 and eps alone cannot give z_0 back: ValueError with "epsilon"."""

    def __init__(self, beta_start=0.00085, beta_end=0.012, num_train_timesteps=1000, prediction_type="epsilon",
                 rescale_betas_zero_snr=False):
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type '{prediction_type}': want epsilon or v_prediction")
        if rescale_betas_zero_snr and prediction_type == "epsilon":
            raise ValueError("zero terminal SNR needs v_prediction: at alpha_bar = 0, z_0 = (z_t - eps) / 0")
        betas = torch.linspace(beta_start ** 0.5, beta_end ** 0.5, num_train_timesteps, dtype=torch.float64) ** 2
        self.alpha_bar = (1 - betas).cumprod(0)
        if not self.alpha_bar[-1] > 0:
            raise ValueError(f"alpha_bar ends at {self.alpha_bar[-1]:g}: want smaller betas")
        if rescale_betas_zero_snr:
            root = self.alpha_bar.sqrt()
            self.alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        self.prediction_type = prediction_type
        self.to("cpu")

    def to(self, device):
        """Copies the table in float32 (Apple's GPUs lack float64) for alpha_bar_at. Returns the schedule itself."""
        self.alpha_bar_float32 = self.alpha_bar.to(device, torch.float32)
        return self

    def alpha_bar_at(self, t, like):
        """alpha_bar at steps t [b], shaped to multiply `like` [b, ...], in its dtype and on its device."""
        table = self.alpha_bar if like.dtype == torch.float64 else self.alpha_bar_float32
        return table.to(t.device)[t].to(like.device, like.dtype).view(-1, *[1] * (like.dim() - 1))

    def timesteps(self, steps, spacing="trailing"):
        """The steps from noise to picture: [(t, alpha_bar[t], alpha_bar at the next t)], `steps` long.

        Raises ValueError if the table has too few rows for so many steps."""
        count = len(self.alpha_bar)
        if spacing not in ("trailing", "leading"):
            raise ValueError(f"spacing '{spacing}': want trailing or leading")
        most = count if spacing == "trailing" else count - 1                 # 1000 leading steps would start at 1000
        if not 1 <= steps <= most:
            raise ValueError(f"{steps} steps: want 1 to {most} with {spacing} spacing")
        if spacing == "trailing":
            ts, end = [round(count - i * count / steps) - 1 for i in range(steps)], 1.0
        else:
            ts, end = [i * (count // steps) + 1 for i in reversed(range(steps))], self.alpha_bar[0].item()
        ab = [self.alpha_bar[t].item() for t in ts]
        return list(zip(ts, ab, ab[1:] + [end], strict=True))

    def predict_z0_eps(self, output, z_t, ab):
        """The network's output, eps or v = sqrt(ab) eps - sqrt(1 - ab) z_0 -> (z_0, eps) of Eq. 4. ab: alpha_bar[t]."""
        if self.prediction_type == "epsilon":
            return (z_t - (1 - ab) ** 0.5 * output) / ab ** 0.5, output
        return ab ** 0.5 * z_t - (1 - ab) ** 0.5 * output, ab ** 0.5 * output + (1 - ab) ** 0.5 * z_t


def appearance_noise(eps_n, z_c, lam):
    """Eq. 3: eps^i = lam z_c + eps_n^i. Sampling starts from it with lam + gamma as lam (Sec. 4.2.2).

    eps_n [b, 4, n, h, w] is i.i.d. noise; z_c [b, 4, 1, h, w] spreads over the n frames. No renormalisation."""
    return lam * z_c + eps_n


def add_noise(z_0, eps, alpha_bar):
    """Eq. 4: z_t. `alpha_bar` comes from NoiseSchedule.alpha_bar_at."""
    return alpha_bar ** 0.5 * z_0 + (1 - alpha_bar) ** 0.5 * eps


def guide(model, scale, text, empty):
    """Classifier-free guidance (Ho & Salimans 2022): turns a model of (z_t, t, text) into a function of (z_t, t).

    The output is uncond + scale * (cond - uncond), both from one batch. Scale 0 ignores `text` [b, l, d]. Scale 1 is
    the plain conditional model and costs one pass instead of two. `empty` [b, l, d] is the encoded text ""."""
    if scale == 1:
        return lambda z_t, t: model(z_t, t, text)
    both = torch.cat([empty, text])

    def guided(z_t, t):
        uncond, cond = model(torch.cat([z_t, z_t]), torch.cat([t, t]), both).chunk(2)
        return uncond + scale * (cond - uncond)
    return guided


def ddim(model, z_T, timesteps, schedule, shift=0.0, eta=0.0, noise=None):
    """DDIM (Song et al. 2021), Eq. 12: from z_T [b, 4, n, h, w] through `timesteps`; yields each z_t, z_0 last.

    `model` maps (z_t, t [b]) to the network's output. At eta = 0 it solves the ODE, and Eq. 3 changes nothing. At
    eta > 0 each step replaces a part of eps, and of its mean `shift` = lam * z_c, by fresh noise() [b, 4, n, h, w]. So
    the step is DDIM's own on eps - shift, the noise without its mean, and the whole mean is added back."""
    z_t = z_T
    for t, ab, ab_next in timesteps:
        z_0, eps = schedule.predict_z0_eps(model(z_t, torch.full((len(z_t),), t, device=z_t.device)), z_t, ab)
        sigma = eta * ((1 - ab_next) / (1 - ab) * (1 - ab / ab_next)) ** 0.5
        kept = max(0.0, 1 - ab_next - sigma ** 2) ** 0.5                     # rounding can take it below 0
        direction = kept * (eps - shift) + (1 - ab_next) ** 0.5 * shift
        z_t = ab_next ** 0.5 * z_0 + direction
        if sigma > 0:
            z_t = z_t + sigma * noise()
        yield z_t


def dpm_solver_pp(model, z_T, timesteps, schedule):
    """DPM-Solver++ (2M) (Lu et al. 2022), Algorithm 2: another solver of the same ODE, better with few steps.

    Sec. 3.3 claims that existing ODE samplers need no change: lam does not occur here. Yields as `ddim` does.
    It extrapolates z_0 along lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), which is not the paper's lambda."""
    def log_snr(ab):
        return 0.5 * torch.log(torch.tensor(ab / (1 - ab), dtype=torch.float64)).item()

    z_t, z_0_before, h_before = z_T, None, None
    for t, ab, ab_next in timesteps:
        z_0, _ = schedule.predict_z0_eps(model(z_t, torch.full((len(z_t),), t, device=z_t.device)), z_t, ab)
        if ab_next == 1:                                                     # lambda is infinite there, and z_t = z_0
            z_t = z_0
        else:
            h = log_snr(ab_next) - log_snr(ab)
            d = z_0 if z_0_before is None else z_0 + h / (2 * h_before) * (z_0 - z_0_before)
            ratio = ((1 - ab_next) / (1 - ab)) ** 0.5
            z_t = ratio * z_t + ab_next ** 0.5 * (1 - ratio * (ab / ab_next) ** 0.5) * d
            z_0_before, h_before = z_0, h
        yield z_t


SAMPLERS = {"ddim": ddim, "dpm++": dpm_solver_pp}
