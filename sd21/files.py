"""Files that are never seen half-written. Defines atomic_write, read_json, write_json, write_tensors (safetensors)."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file


@contextmanager
def atomic_write(path):
    """Yields a temporary path to write a file or a folder to, which is renamed to `path` if the block ends well.
    It has the same file name, which chooses a format, in a new folder `.NAME.part` beside `path`. That folder is always
    removed; after a kill, by the next write. Two processes must not write the same path at the same time. OSError if
    there is a folder of that name with other files."""
    path = Path(path)
    folder = path.with_name(f".{path.name}.part")
    new, old = folder / path.name, folder / f"{path.name}.old"
    # safetensors writes .tmp... first, and a kill may leave it.
    if folder.is_dir() and any(not name.startswith((path.name, ".tmp")) for name in os.listdir(folder)):
        raise OSError(f"{folder}: holds files that no unfinished write left; move it away")
    if old.exists() and not path.exists():                      # a run was killed between the two renames below
        old.rename(path)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        yield new
        if path.is_dir() and new.is_dir():                      # os.replace cannot replace a folder that has files, and
            path.rename(old)                                    # raises OSError if a file would replace a folder
        os.replace(new, path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(folder, ignore_errors=True)


def read_json(path):
    """The JSON object in a file. Raises ValueError, in one line, if the file is missing or holds anything else."""
    if Path(path).exists() and not Path(path).is_file():                    # a pipe or a device may never end
        raise ValueError(f"{path}: is not a file")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; is this the right folder?") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: want a JSON object, found {type(content).__name__}")
    return content


def write_json(content, path):
    """Writes a dict as indented JSON, atomically."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tensors(tensors, path, metadata=None):
    """Writes {name: tensor} and {str: str} as a safetensors file, atomically. Raises OSError, in one line."""
    try:
        with atomic_write(path) as part:
            save_file(tensors, part, metadata=metadata)
            part.chmod(part.parent.stat().st_mode & 0o666)      # safetensors lets only the owner read its files
            with open(part, "rb+") as file:
                os.fsync(file.fileno())
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({' '.join(str(error).split())})") from None
