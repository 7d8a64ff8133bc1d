"""What FVD, IS and CLIPSIM share: clips from files as windows of 8-bit frames, and the networks that judge them.

in       a folder of clips: everything that data/folder.py reads; only CLIPSIM needs captions
out      Windows[i] -> uint8 [n, H, W, 3]; run_network(...) -> float64 [b, d]
our reading  The paper does not say how windows were cut. We take one window a clip, from its middle, and cut it to
             --size. A network is any TorchScript file with the call of the I3D files that FVD scripts use:
             net(x, rescale=True, resize=True, return_features=True), x [b, 3, n, h, w] with pixels 0-255. It returns
             features [b, d], and with return_features=False the probabilities of classes [b, k].
"""
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from data.folder import ANIMATIONS, FILMS, HIDDEN, clip_seconds, is_text, pictures_of, read_captions, read_clip
from data.media import open_picture
from sd21.command import device, fps, one_line, option, positive_int, size

I3D_FRAMES = 10                     # with fewer, I3D pools its last features over too little time
JUDGE = Path(__file__).parents[1] / "toy" / "judge" / "judge.fp16.safetensors"


@dataclass(frozen=True)
class Protocol:
    """How clips are read and judged."""
    network: Path | None = option(None, "network as TorchScript, a program: load what you trust (toy judge)", Path)
    frames: int = option(17, "frames of a window (17, Sec. 4.2)", positive_int)
    fps: float = option(4.0, "frames a second of a window (4)", fps)
    size: int | str = option(128, "pixels of a frame: 128 (default) is square, 320x192 is width x height", size)
    batch: int = option(16, "windows at once (16)", positive_int)
    device: str = option("cuda" if torch.cuda.is_available() else "cpu", "cpu, cuda, ...", device)

    def load(self):
        """(the network, {setting: value}): numbers can be compared only if these are equal. Raises ValueError."""
        name, file = "toy judge", JUDGE
        if self.network is None:
            from evaluation.judge import load_judge                 # imports this module
            network = load_judge(self.device)["classifier"]
        elif self.frames < I3D_FRAMES:
            raise ValueError(f"--frames {self.frames}: a network like I3D wants {I3D_FRAMES} frames or more")
        else:
            try:
                network = torch.jit.load(str(self.network), map_location=self.device).float().eval()
            except (RuntimeError, ValueError) as error:
                raise ValueError(f"{self.network}: not a TorchScript file ({one_line(error)[:200]})") from None
            name, file = self.network.name, self.network
        name = f"{name} (sha256 {hashlib.sha256(file.read_bytes()).hexdigest()[:12]})"
        return network, {"network": name, "frames": self.frames, "fps": self.fps, "size": self.size,
                         "window": "one a clip, from its middle"}


def describe(settings):
    """The settings of Protocol.load in one line."""
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def read_window(path, protocol, rate=None):
    """The middle of a clip: uint8 [n, H, W, 3]. `rate` is for a folder of pictures. Raises ValueError."""
    n, fps, moves = protocol.frames, protocol.fps, True
    try:
        if path.suffix.lower() in (".gif", ".webp", ".apng"):       # a file with one picture does not tell its length:
            with open_picture(path) as image:                       # writers store equal neighbours once
                moves = getattr(image, "n_frames", 1) > 1
        start = max(0, (clip_seconds(path, rate) - n / fps) / 2)
        times = start + (np.arange(n) + 0.5) / fps                  # the middle of each frame's time on show
        frames = torch.tensor(read_clip(path, times if moves else np.zeros(1), protocol.size, rate))
        return frames if moves else frames.repeat(n, 1, 1, 1)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {one_line(error)}; want {n} frames at {fps:g} fps, see --frames and --fps") from None


class Windows(torch.utils.data.Dataset):
    """A window of each clip that a folder's metadata names, or of each animation and film in a folder without captions.
    Item i is the window, or the ValueError of read_window: raised in a worker process, it would lose its one line."""
    def __init__(self, folder, protocol, with_captions=False):
        self.protocol, folder = protocol, Path(folder)
        if not folder.exists():
            raise ValueError(f"{folder}: no such folder of clips")
        rows = {path: row for path, row in read_captions(folder).items() if path.suffix != ".txt"}    # of no clip
        if with_captions:
            rows = {path: row for path, row in rows.items() if row["text"] != ""}
            if bad := [path for path, row in rows.items() if not is_text(row["text"])]:
                raise ValueError(f"{bad[0]}: has a caption that cannot be read as text in UTF-8")
        if not rows and not with_captions and folder.is_dir():
            rows = {path: {"text": "", "fps": None} for path in sorted(folder.rglob("*"))
                    if path.suffix.lower() in ANIMATIONS + FILMS and not HIDDEN.search(str(path.relative_to(folder)))}
        if len(rows) < 2:
            raise ValueError(f"{folder}: has {len(rows)} clips{' with captions' * with_captions}; want 2 or more")
        self.paths, self.rates = list(rows), [row["fps"] for row in rows.values()]
        self.captions = [row["text"] for row in rows.values()]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        try:
            return read_window(self.paths[i], self.protocol, self.rates[i])
        except ValueError as error:
            return error

    def sizes(self):
        """The sizes of the pictures in the files, as "128x128, 256x144". Films are left out."""
        sizes = set()
        for path in [pictures_of(path)[0] if path.is_dir() else path for path in self.paths]:
            if path.suffix.lower() not in FILMS:
                with open_picture(path) as image:
                    sizes.add(f"{image.width}x{image.height}")
        return ", ".join(sorted(sizes))

    def batches(self):
        """Yields uint8 [b, n, H, W, 3] batch after batch. Worker processes read ahead. Raises ValueError."""
        workers = max(0, min((os.cpu_count() or 1) - 1, len(self) // 64))    # fewer clips are not worth a process
        loader = torch.utils.data.DataLoader(self, self.protocol.batch, num_workers=workers, collate_fn=list)
        for items in tqdm(loader, desc="reading and judging", mininterval=2):
            for item in items:
                if isinstance(item, ValueError):
                    raise item
            yield torch.stack(items)


@torch.inference_mode()
def run_network(network, frames, device, return_features=True):
    """The features or probabilities of windows uint8 [b, n, H, W, 3]: float64 [b, d], on the CPU. Raises ValueError."""
    x = frames.to(device).permute(0, 4, 1, 2, 3).float()            # [b, 3, n, H, W]
    try:
        y = network(x, rescale=True, resize=True, return_features=return_features).double().cpu()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"the network does not take the call of an I3D file ({one_line(error)[-200:]})") from None
    if y.dim() != 2 or len(y) != len(x) or not y.isfinite().all():
        raise ValueError(f"the network returns {list(y.shape)} for {len(x)} windows, or numbers that are not finite; "
                         "want a row of finite numbers for each")
    return y
