"""Strangers' payloads against the contract of a dataset, in processes that may hang or die of them.

ffmpeg says what the frames are; what the training's decoder makes of the same bytes must agree.
"""

import json
import multiprocessing
import resource
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np

from ingest import ffmpeg, planes
from ingest.clip import Contract, Prep
from ingest.decode import check_payload
from ingest.ledger import Fate
from ingest.pictures import demuxer_of
from ingest.reading import Reading
from ingest.scores import score
from ingest.sources import SourceError
from ingest.streams import VideoInfo

RULE = "contract"
LIMIT_S = 120.0  # for one clip; starting the process included
ADVICE = "raw videos are cut into clips by `kinoray curate`"
_PNG, _H264 = b"\x89PNG\r\n\x1a\n", (b"avc1", b"avc3")
_PAGE_BYTES = 4096


class BrokenContract(ValueError):
    """A payload that is whole, but not a clip of this dataset."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vetted:
    """A payload that satisfies the contract: its columns of the ledger, and its scores."""

    payload_kind: str
    frame_count: int
    fps_num: int
    fps_den: int
    width: int
    height: int
    scores: dict[str, float | None]


class Vetting:
    """Asks a process per thread; use as a context manager, which ends them all."""

    def __init__(self, prep: Prep) -> None:
        self.prep = prep
        self._own = threading.local()
        self._started: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> "Vetting":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process, pipe in self._started:
            pipe.close()
            process.kill()
            process.join()
            process.close()

    def verdict(self, payload: bytes) -> Vetted | Fate:
        """Return what a payload is, or the fate of one that is no clip of this dataset."""
        if getattr(self._own, "child", None) is None:
            self._own.child = self._start()
        process, pipe = self._own.child
        try:
            pipe.send_bytes(payload)
            if pipe.poll(LIMIT_S):
                return _verdict(pipe.recv_bytes())
            died = f"not decoded within {LIMIT_S:g} s"
        except (EOFError, OSError):
            died = "the process that decoded it died"
        self._own.child = None
        process.kill()
        return Fate(name="failed", stage="check", error_class="DecoderLost", message=died)

    def _start(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, self.prep), daemon=True)
        process.start()
        there.close()
        self._started.append((process, here))
        return process, here


def _verdict(answer: bytes) -> Vetted | Fate:
    # JSON, for this comes from a process that has read what strangers wrote.
    values = json.loads(answer)
    return Fate(**values["fate"]) if "fate" in values else Vetted(**values)


def _serve(pipe: Connection, prep: Prep) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # meant for the parent, which ends this one
    cv2.setNumThreads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (prep.memory_bytes + pages * _PAGE_BYTES, hard))
    while True:
        try:
            payload = pipe.recv_bytes()
        except EOFError:
            return
        signal.alarm(int(LIMIT_S) + 1)  # also when the parent is gone and the decoder hangs
        pipe.send_bytes(json.dumps(_judged(payload, prep)).encode())
        signal.alarm(0)


def _judged(payload: bytes, prep: Prep) -> dict[str, object]:
    try:
        return asdict(vet(payload, prep))
    except BrokenContract as error:
        fate = Fate(name="rejected", rule=RULE, message=f"{error}; {ADVICE}")
    except SourceError as error:
        fate = Fate(
            name="failed",
            stage=error.stage,
            error_class=error.error_class,
            message=error.message,
        )
    except MemoryError:
        message = f"needs more than memory_bytes={prep.memory_bytes}"
        fate = Fate(name="failed", stage="check", error_class="MemoryError", message=message)
    return {"fate": asdict(fate)}


def vet(payload: bytes, prep: Prep) -> Vetted:
    """Return what a payload is; raises BrokenContract, or SourceError when it cannot be decoded."""
    with _file_of(payload) as path:
        picture = demuxer_of(path) if payload.startswith(_PNG) else ""
        native = replace(prep, contract=Contract(frames=prep.contract.frames, fps="native"))
        info = ffmpeg.probe(path, native, picture)
        _check_form(payload, info, prep)
        short_side_px = max(16, (min(info.display_size) + 1) // 2 * 2)  # as it is, nothing shrinks
        whole = replace(native, payload_short_side_px=short_side_px)
        frames = _frames(Reading(path, info, whole), prep.contract.frames)
    fps = info.pace.fps if info.pace else Fraction(0)
    try:
        check_payload(payload, prep.contract, fps=fps, reference=frames)
    except ValueError as error:
        raise BrokenContract(str(error)) from error
    return Vetted(
        payload_kind="png" if picture else "h264_mp4",
        frame_count=prep.contract.frames,
        fps_num=fps.numerator,
        fps_den=fps.denominator,
        width=planes.size(frames[0])[0],
        height=planes.size(frames[0])[1],
        scores=score(frames, fps or 1),
    )


@contextmanager
def _file_of(payload: bytes) -> Iterator[str]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(payload)
        file.flush()
        try:
            yield file.name
        except SourceError as error:  # equal faults read equal, whatever the file was called
            message = error.message.replace(f"file:{file.name}", "payload")
            raise SourceError(error.stage, error.error_class, message) from error


def _check_form(payload: bytes, info: VideoInfo, prep: Prep) -> None:
    contract = prep.contract
    if not info.picture and (payload[4:8] != b"ftyp" or not any(c in payload for c in _H264)):
        raise BrokenContract("neither an MP4 with H.264 nor a PNG")
    if bool(info.picture) != contract.is_still:
        raise BrokenContract(f"the dataset holds {contract.describe()}")
    width, height = info.display_size
    if contract.frames * width * height * 3 > prep.memory_bytes:
        raise BrokenContract(f"{contract.frames} frames of {width}x{height} px are too much")
    if info.pace is None:
        return
    if not info.pace.steady:
        raise BrokenContract("no constant frame rate")
    if not contract.native and info.pace.fps != contract.fps:
        raise BrokenContract(f"{float(info.pace.fps):.6g} fps, the contract says {contract.fps}")


def _frames(reading: Reading, num_frames: int) -> np.ndarray:
    frames: list[np.ndarray] = []
    with reading:
        for frame in reading:
            if len(frames) == num_frames:
                raise BrokenContract(f"more than {num_frames} frames")
            frames.append(frame)
        if reading.hdr:
            raise BrokenContract("PQ or HLG transfer")
        if reading.damage:
            raise SourceError("decode", "Damaged", reading.damage)
    if len(frames) != num_frames:
        raise BrokenContract(f"{len(frames)} frames, the contract says {num_frames}")
    return np.stack(frames)
