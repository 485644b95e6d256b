"""Which weights: a file and its sha256, or one of open_clip's tags; verified before it is read."""

import hashlib
import pickle
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from safetensors import SafetensorError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TENSOR_FILES = (".safetensors", ".pt", ".pth", ".bin")

# What torch and safetensors raise for a pickle of objects, a TorchScript archive, a page of HTML.
UNREADABLE = (pickle.UnpicklingError, EOFError, SafetensorError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """An open_clip model: `model` is a name of open_clip's or the path of a model config (.json).

    Its weights are `path` with `sha256`, or those of `tag` in the local cache (then `sha256` is
    checked where given). With both, the file is read and the tag says how its images are prepared.
    """

    model: str
    path: Path | None = None
    sha256: str = ""
    tag: str = ""

    def __post_init__(self) -> None:
        """Refuse weights that are not named, or a file whose content is not pinned."""
        if self.path is None and not self.tag:
            raise ValueError(f"weights of {self.model}: give path and sha256, or a tag")
        if self.path is not None and not self.sha256:
            raise ValueError(f"weights of {self.model}: path needs sha256; `sha256sum {self.path}`")
        if self.sha256 and not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 of {self.model} must be 64 lower-case hex digits")


def present(path: Path, sha256: str) -> None:
    """Check what can be told of a file of tensors without reading it.

    Raises FileNotFoundError, or ValueError for another kind of file or what is no sha256 ("" is none).
    """
    if sha256 and not _SHA256.fullmatch(sha256):
        raise ValueError(f"sha256 of {path} must be 64 lower-case hex digits")
    if path.suffix not in _TENSOR_FILES:
        raise ValueError(f"{path} must be one of {', '.join(_TENSOR_FILES)}")
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: put the file there or correct the path")


def verified(path: Path, sha256: str) -> str:
    """Return the sha256 of a file of tensors, which must be `sha256` unless that is "".

    A file that has not changed is read once a process. Raises what `present` raises, and ValueError
    for another content.
    """
    present(path, sha256)
    status = path.stat()
    found = _hashed(path, status.st_ino, status.st_size, status.st_mtime_ns)
    if sha256 and found != sha256:
        raise ValueError(f"{path} is not the file that was pinned: its sha256 is {found}")
    return found


@lru_cache(maxsize=32)
def _hashed(path: Path, _inode: int, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def no_tensors(path: Path) -> str:
    """Say what is wrong with a file that raised one of UNREADABLE."""
    return f"{path} is no file of tensors, or holds more than tensors: convert it to safetensors"
