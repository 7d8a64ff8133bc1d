"""The numbers behind ablations.py: trains a video model, generates clips with it, measures them.

Everything lies in the folder --out: models/, clips/, results/ (a small JSON file a number). A number that is there is
not computed again, and a model is trained only for numbers that are missing.
our reading  As in Sec. 4.2 the models make 17 frames directly. All numbers share data, seeds and the number of steps.
             On a GPU, training and sampling run in bfloat16.
"""
import functools
import gc
import itertools
import math
import shutil
import time
from collections import namedtuple
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import train
from appearnet import INJECTIONS
from data.toyset import side_of
from evaluation import generate
from evaluation.fvd import frechet_distance
from evaluation.inception_score import inception_score
from evaluation.judge import ToyScore, measure
from evaluation.measure import average, score_clip
from evaluation.windows import Protocol, Windows, read_window
from microcinema import MicroCinema, Sampling
from sd21 import weights
from sd21.command import device, existing_path, finite_float, fps, option, positive_float, positive_int
from sd21.files import read_json, write_json
from training import pretrain
from training.state import checkpoints

# One number of a table: row of Table 2, lambda, gamma, key frames (true, or of a strong or weak first stage), prompts.
Cell = namedtuple("Cell", "inject lam gamma key_frames prompts",
                  defaults=(INJECTIONS[-1], 0.03, 0.02, "true", "caption"))


PREPARED = "prepared.json"          # the last file of Study.prepare


class OutOfTime(Exception):
    """--minutes have passed."""


@dataclass(frozen=True)
class Settings:
    """The settings that all numbers of a study share."""
    out: Path = option(None, "folder that collects everything", Path, required=True)
    model: Path = option(Path(__file__).parents[1] / "toy", "model folder with the image model (toy)", existing_path)
    network: Path | None = option(None, "an I3D as TorchScript, for the field's FVD beside toy FVD", existing_path)
    steps: int = option(1000, "training steps of a video model (1000)", positive_int)
    weak_steps: int = option(300, "training steps of Table 4's weak image model (300)", positive_int)
    seeds: int = option(3, "training seeds, 2 to 8 (3)", positive_int, choices=range(2, 9))
    train_clips: int = option(10_000, "clips to train on (10,000)", positive_int)
    train_batch: int = option(32, "clips a training step (32)", positive_int)
    clips: int = option(512, "generated clips a number (512)", positive_int)
    frames: int = option(17, "frames of a clip (17, Sec. 4.2)", positive_int)
    fps: float = option(4.0, "frames a second (4)", fps)
    sampling_steps: int = option(15, "denoising steps (15)", positive_int)
    guidance: float = option(1.0, "guidance scale of stage two (1: half the work of any other)", finite_float)
    batch: int = option(64, "generated clips at once (64)", positive_int)
    minutes: float = option(math.inf, "begin nothing new after this time; the same command goes on", positive_float)
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "cpu or cuda", device)


class Study:
    """Computes the numbers that are missing. ValueError if the folder was begun with other settings."""
    def __init__(self, settings):
        if settings.clips < 2:
            raise ValueError(f"--clips {settings.clips}: want 2 or more")
        self.settings, self.began, self.gpu = settings, time.monotonic(), settings.device != "cpu"
        video = weights.component("video", settings.model)
        self.size = side_of(weights.read_settings(video, "sampling", Sampling).size)
        self.protocol = Protocol(None, settings.frames, settings.fps, self.size, device=settings.device)
        self.scenes = generate.held_out_scenes(settings.clips)
        self.captions = [scene.caption() for scene in self.scenes]
        may_change = ("out", "seeds", "batch", "minutes", "device")
        shared = {key: str(value) for key, value in asdict(settings).items() if key not in may_change}
        shared["judge"] = self.protocol.load()[1]["network"]
        record = settings.out / "study.json"
        begun = read_json(record) if record.exists() else shared
        if begun != shared:
            other = sorted(key for key in begun | shared if begun.get(key) != shared.get(key))
            raise ValueError(f"{settings.out}: was begun with other settings ({', '.join(other)}); name a new --out")
        write_json(shared, record)
        self.networks                                               # fail here rather than after the first training
        self.load()

    def check_time(self):
        if time.monotonic() - self.began > 60 * self.settings.minutes:
            print(f"stopped after {self.settings.minutes:g} minutes; the same command goes on")
            raise OutOfTime

    def train(self, out, main, stage, *argv):
        """Trains a stage in a folder, by the command of train.py or pretrain.py, unless that is done. Returns `out`."""
        if not (out / "trained.json").exists():
            self.check_time()
            began, fast = time.monotonic(), ["--bf16", "--cuda-graph"] if self.gpu and stage != "latents" else []
            argv = [stage, *argv, "--model", self.settings.model, "--out", out, "--size", self.size, "--clips",
                    self.settings.train_clips, "--device", self.settings.device, *fast]
            if main([*map(str, argv)]):
                raise ValueError(f"{out}: was not trained; the line above says why")
            gc.collect()                                            # frees the memory of a recorded CUDA graph
            for path in checkpoints(out, stage):                    # 90 MB each; the trained model has 11
                path.unlink()
            write_json({"seconds": round(time.monotonic() - began, 1)}, out / "trained.json")
        return out

    def latents(self):
        """The folder of the latents that all video models are trained on."""
        s = self.settings
        return self.train(s.out / "latents", train.main, "latents", "--for", "video", "--frames", s.frames,
                          "--fps", s.fps)

    def prepare(self):
        """Makes everything that models share. Then several processes may compute parts of the numbers at once."""
        self.latents()
        self.first_stage("weak")
        self.truth                                                  # a cached property: writes and measures the clips
        write_json({}, self.settings.out / PREPARED)

    def video_model(self, cell, seed):
        """The folder of the video model of a cell."""
        s, folder = self.settings, self.settings.out / "models" / f"{cell.inject}-{cell.lam:g}-{seed}"
        return self.train(folder, train.main, "video", "--frames", s.frames, "--fps", s.fps, "--seed", seed,
                          "--latents", self.latents(), "--inject", cell.inject, "--lam", cell.lam,
                          "--batch", s.train_batch, "--lr-temporal", 2e-3, "--lr-spatial", 1.2e-3, "--warmup", 100,
                          "--ema", 0.99, "--cooldown", 0.4, "--steps", s.steps, "--save-every", s.steps,
                          "--sample-every", s.steps)

    def load(self, overlay=None):
        """The MicroCinema of our model folder, with the parts that were trained in a folder."""
        dtype = torch.bfloat16 if self.gpu else torch.float32
        cinema = MicroCinema.load(self.settings.model, self.settings.device, dtype, overlay)
        cinema.progress = False
        return cinema

    def first_stage(self, kind):
        """The function that draws key frames; None for true ones. A weak image model is early in its training."""
        if kind == "true":
            return None
        s = self.settings
        weights = None                                              # the model folder's own
        if kind == "weak":
            weights = self.train(s.out / "models" / "weak", pretrain.main, "image", "--batch", 4 * s.train_batch,
                                 "--steps", s.weak_steps, "--save-every", s.weak_steps, "--sample-every", s.weak_steps)
        return functools.partial(self.load(weights).key_frame, steps=s.sampling_steps)

    @functools.cached_property
    def networks(self):
        """{name of a distance: the network whose features it compares}"""
        field = {"FVD": self.settings.network} if self.settings.network else {}
        return {name: Protocol(file, self.settings.frames, device=self.settings.device).load()[0]
                for name, file in ({"toy FVD": None} | field).items()}

    @functools.cached_property
    def truth(self):
        """`measure` of the true clips of the same prompts."""
        shape, folder = self.protocol, self.settings.out / "clips" / "truth"
        generate.fill(folder, self.captions, lambda ids: generate.draw([self.scenes[i] for i in ids], shape),
                      {"frames": shape.frames, "fps": shape.fps, "size": shape.size}, shape.fps, self.settings.batch)
        return self.measure(folder)

    def measure(self, folder):
        """({name of a distance: Statistics}, {score: number}) of a folder of clips of our scenes."""
        windows, score = Windows(folder, self.protocol), ToyScore(self.settings.device)
        exact = generate.parallel(score_file, windows.paths, itertools.repeat(self.protocol),
                                  [scene.things[0] for scene in self.scenes])
        features, p, fits = measure(windows.batches(), self.captions, self.networks, score, self.settings.device)
        return features, {"toy IS": inception_score(p, 1)[0], "toy CLIPSIM": fits.mean().item(), **average([*exact])}

    def result(self, cell, seed):
        """The scores of a cell: {column: number}."""
        s, name = self.settings, "-".join(map(str, (*cell, seed)))
        path, began = s.out / "results" / f"{name}.json", time.monotonic()
        if not path.exists():
            model, first_stage = self.video_model(cell, seed), self.first_stage(cell.key_frames)
            self.check_time()
            prompts, trained = [generate.prompt_of(scene, cell.prompts) for scene in self.scenes], time.monotonic()
            changes = {"steps": s.sampling_steps, "guidance": s.guidance, "gamma": cell.gamma}
            make = generate.maker(self.load(model), first_stage, self.scenes, prompts, **changes)
            generate.fill(s.out / "clips" / name, prompts, make, changes, s.fps, s.batch)
            generated, (features, scores) = time.monotonic(), self.measure(s.out / "clips" / name)
            path.parent.mkdir(exist_ok=True)
            for clip in ("00000", "00001"):                         # for Fig. 7: results/ is all that has to be kept
                shutil.copy(s.out / "clips" / name / f"{clip}.webp", path.with_name(f"{name}-{clip}.webp"))
            distances = {key: frechet_distance(self.truth[0][key], features[key]) for key in features}
            seconds = [round(b - a) for a, b in ((began, trained), (trained, generated), (generated, time.monotonic()))]
            print(f"{name}: {distances}; seconds to train, generate, measure: {seconds}", flush=True)
            write_json(distances | scores | {"seconds": seconds}, path)
        return read_json(path)


def score_file(path, protocol, thing):
    """The exact scores of a clip (evaluation/measure.py)."""
    return score_clip(read_window(path, protocol).numpy(), thing, fps=protocol.fps)
