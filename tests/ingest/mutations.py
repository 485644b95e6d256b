"""Real videos with seeded damage, and what curation must make of every one of them.

A mutation is named by its seed alone: the file it starts from, the kind of damage and where it lies
all follow from it, so that a failing one can be made again.
"""

import random
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ingest.clip import Prep
from ingest.decode import check_payload
from ingest.keep import Keep
from ingest.shards import read_payload
from ingest.sources import list_sources
from ingest.unit import curate_unit, plan_unit

PREP = Prep(decode_timeout_s=60.0, stall_timeout_s=20.0, memory_bytes=1 << 30)
# Seconds: every look before the decoding, the decoding, and ffmpeg's last words have a limit each.
MOST_S = 150.0
MOST_OWN_MIB, MOST_CHILD_MIB = 600, 1024
LARGEST_BYTES = 1_500_000  # of an original: the damage is what counts, not the length
FATES = {"kept", "rejected", "failed"}


def flipped(draw: random.Random, raw: bytearray, _other: bytes) -> bytes:
    """One to 200 single bits turned over anywhere."""
    for _ in range(draw.choice((1, 5, 40, 200))):
        raw[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)
    return bytes(raw)


def flipped_in_front(draw: random.Random, raw: bytearray, _other: bytes) -> bytes:
    """Bits turned over among the first bytes, where the container says what it is."""
    for _ in range(draw.choice((1, 3, 12))):
        raw[draw.randrange(min(len(raw), 4096))] ^= 1 << draw.randrange(8)
    return bytes(raw)


def truncated(draw: random.Random, raw: bytearray, _other: bytes) -> bytes:
    """The file without its end, or without its beginning."""
    place = draw.randrange(1, len(raw))
    return bytes(raw[:place] if draw.random() < 0.7 else raw[place:])


def zeroed(draw: random.Random, raw: bytearray, _other: bytes) -> bytes:
    """One to eight ranges of zeros, as a sparse or badly copied file has them."""
    for _ in range(draw.randint(1, 8)):
        start = draw.randrange(len(raw))
        end = min(len(raw), start + draw.choice((16, 512, 4096, 65536)))
        raw[start:end] = bytes(end - start)
    return bytes(raw)


def spliced(draw: random.Random, raw: bytearray, other: bytes) -> bytes:
    """The beginning of one file and the end of another."""
    return bytes(raw[: draw.randrange(1, len(raw))]) + other[draw.randrange(len(other)) :]


def shuffled(draw: random.Random, raw: bytearray, _other: bytes) -> bytes:
    """Two ranges of the file in each other's place."""
    size = draw.choice((64, 1024, 16384))
    one, two = sorted(draw.randrange(max(1, len(raw) - size)) for _ in range(2))
    two = max(two, one + size)
    return bytes(raw[:one] + raw[two : two + size] + raw[one + size : two] + raw[one : one + size]
                 + raw[two + size :])  # fmt: skip


KINDS: tuple[Callable[[random.Random, bytearray, bytes], bytes], ...] = (
    flipped, flipped_in_front, truncated, zeroed, spliced, shuffled,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What curation made of one mutation; `fault` is "" where all promises held."""

    seed: int
    what: str
    fate: str
    seconds: float
    fault: str


def originals(folder: Path) -> list[Path]:
    """The small ones of the real videos, in a fixed order."""
    found = (path for path in folder.iterdir() if path.suffix not in {".md", ".json", ".jsonl"})
    return sorted(path for path in found if path.stat().st_size <= LARGEST_BYTES)


def mutate(seed: int, folder: Path, place: Path) -> str:
    """Write mutation `seed` as `place` with the suffix of its original; return what it is."""
    draw = random.Random(seed)
    files = originals(folder)
    one, two = files[seed % len(files)], draw.choice(files)
    kind = KINDS[seed // len(files) % len(KINDS)] if seed >= len(KINDS) else KINDS[seed]
    place.write_bytes(kind(draw, bytearray(one.read_bytes()), two.read_bytes()))
    return f"{kind.__name__} {one.name}"


def outcome(seed: int, folder: Path, scratch: Path) -> Outcome:
    """Curate one mutation and check every promise about it.

    To be called in a small process of its own: a child's maximum of memory counts that of the
    process that starts it, and the largest child of a process is the largest for ever.
    """
    room = scratch / str(seed)
    room.mkdir()
    place = room / "x.mp4"  # the name never tells what is inside
    what = mutate(seed, folder, place)
    unit = plan_unit(list_sources([str(place)])[0], prep=PREP)
    begin = time.monotonic()
    try:
        result = curate_unit(unit, prep=PREP, keep=Keep(), root=room / "out", scratch=room / "s")
    except Exception as error:  # noqa: BLE001 - every exception is a finding here
        return Outcome(seed=seed, what=what, fate="", seconds=0, fault=f"raised {error!r}")
    seconds = time.monotonic() - begin
    source, *clips = result.rows.to_pylist()
    fault = _fault(source, clips, room / "out") or _costs(seconds)
    place.unlink()
    fate = f"{source['fate']} {source['rule'] or source['error_class'] or ''}".strip()
    return Outcome(seed=seed, what=what, fate=fate, seconds=seconds, fault=fault)


def _fault(source: dict, clips: list[dict], root: Path) -> str:
    kept = [row for row in clips if row["fate"] == "kept"]
    if source["kind"] != "source" or any(row["kind"] != "clip" for row in clips):
        return "not one row for the source"
    if source["fate"] not in FATES or (source["fate"] == "failed" and not source["message"]):
        return f"no reason: {source['fate']} {source['message']!r}"
    if (source["num_candidates"], source["num_kept"]) != (len(clips), len(kept)):
        return "the counts are wrong"
    if bool(kept) != (source["fate"] == "kept"):
        return f"{len(kept)} kept clips of a source that is {source['fate']}"
    if source["fate"] == "failed" and (clips or list(root.rglob("*.arrow"))):
        return "a failed source left clips or a shard"
    for row in kept:
        where = row["offset"], row["length"], row["crc32"]
        check_payload(bytes(read_payload(root, row["shard"], *where)), PREP.contract)
    return ""


def _costs(seconds: float) -> str:
    # Not getrusage for this process: its maximum is inherited from the one that started it.
    own = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    if seconds > MOST_S:
        return f"took {seconds:.0f} s"
    if own > MOST_OWN_MIB or child > MOST_CHILD_MIB:
        return f"needs {own:.0f} MiB, its child {child:.0f}"
    return ""
