"""One pass over the frames of a source: cuts, windows, scores, keep rule, payloads.

Memory holds the frames of one clip, not the video; what is kept goes to the shard at once.
"""

import contextlib
import hashlib
import json
import time
import zlib
from collections.abc import Iterator, Set
from dataclasses import asdict, dataclass, field
from fractions import Fraction

import numpy as np
import pyarrow as pa

from ingest import planes
from ingest.clip import Prep, clip_id, payload_kind
from ingest.cuts import CutFinder
from ingest.decode import check_payload
from ingest.detectors import Make, finder
from ingest.duplicates import phash
from ingest.encode import CODER, PNG, encode_clip, encode_still
from ingest.keep import Keep
from ingest.ledger import Fate, Unit, base_row, source_row, to_table
from ingest.looks import SHOT_SIDE_PX
from ingest.reading import Reading
from ingest.scores import score, shrunk
from ingest.shards import ShardWriter
from ingest.shots import Window, WindowFinder, trim_frames
from ingest.sources import SourceError
from ingest.streams import VideoInfo

BT709 = {"range": "tv", "primaries": "bt709", "transfer": "bt709", "matrix": "bt709"}
SRGB = {"range": "pc", "primaries": "bt709", "transfer": "iec61966-2-1", "matrix": "gbr"}
_ONE_RATE = Fraction(0)  # the time of a frame, where nobody looks at it


class Held:
    """The frames that a window may still take, by their number."""

    def __init__(self, finder: WindowFinder) -> None:
        self._finder, self._frames, self._judged = finder, dict[int, np.ndarray](), 0

    def add(self, index: int, frame: np.ndarray) -> None:
        """Hold the next frame, if anybody needs it, and let go of those that nobody needs now."""
        if self._finder.needs(index):
            self._frames[index] = frame
        decided = self._finder.undecided_from
        for skipped in range(self._judged, min(decided, index)):
            if not self._finder.needs(skipped):
                self._frames.pop(skipped, None)
        self._judged = max(self._judged, min(decided, index))
        while self._frames and (oldest := next(iter(self._frames))) < self._judged:
            if self._finder.needs(oldest):
                break
            del self._frames[oldest]

    def take(self, window: Window, step: int) -> np.ndarray:
        """Return the frames of a window."""
        return np.stack([self._frames[n] for n in range(window.start, window.end, step)])


PURGED = Fate(name="rejected", rule="purged")  # taken down; it is not stored again


@dataclass(kw_only=True)
class OnePass:
    """Rows of one unit as they come about: `read` the frames, `place` the shard, take the tables."""

    unit: Unit
    prep: Prep
    keep: Keep
    purged: Set[str] = frozenset()
    detector: Make | None = None
    rows: list[dict[str, object]] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)
    source_facts: dict[str, object] = field(default_factory=dict)
    _ticks: tuple[int, int] | None = None  # of the last window

    def read(self, reading: Reading, shard: ShardWriter) -> Fate:
        """Pass all frames through cuts, windows, scores and the keep rule; return the fate."""
        contract = self.prep.contract
        cuts = finder(self.prep, self.detector)
        windows = WindowFinder(contract, trim_frames(self.prep, reading.fps))
        held, count = Held(windows), 0
        for frame in self._decoded(reading):
            if not count:
                reading.wait_for_clock()
                if reading.hdr:
                    return Fate(name="rejected", rule="hdr", message="PQ or HLG transfer")
            held.add(count, frame)
            with self._timed("shots"):
                small_HW = planes.luma(frame, side_px=SHOT_SIDE_PX)
                at_s = _ONE_RATE if isinstance(cuts, CutFinder) else reading.at_s(count)
                flags = cuts.look(small_HW, at_s)
            for is_cut in flags:
                for window in windows.feed(is_cut=is_cut):
                    self._window(window, held, reading, shard)
            count += 1
        last = [window for is_cut in cuts.end() for window in windows.feed(is_cut=is_cut)]
        for window in [*last, *windows.end()]:
            self._window(window, held, reading, shard)
        self._note(reading, count)
        return self._verdict(reading, windows, count)

    def _decoded(self, reading: Reading) -> Iterator[np.ndarray]:
        frames = iter(reading)
        while True:
            with self._timed("decode"):
                frame = next(frames, None)
            if frame is None:
                return
            yield frame

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        """Add the time that passes to what the stage has taken."""
        began_s = time.perf_counter()
        try:
            yield
        finally:
            taken_s = time.perf_counter() - began_s
            self.stats[f"{stage}_s"] = self.stats.get(f"{stage}_s", 0.0) + taken_s

    def _note(self, reading: Reading, count: int) -> None:
        self.stats["slots"] = count
        start_s, end_s = (reading.at_s(0), reading.at_s(count)) if count else (0, 0)
        self.stats["source_s"] = float(end_s - start_s)
        self.stats["frames_decoded"] = reading.frames_decoded
        self.stats["decode_errors"] = reading.num_errors
        self.source_facts = {
            "stream_index": reading.info.stream_index,
            "frames_decoded": reading.frames_decoded,
            "decode_errors": reading.num_errors,
            "width": reading.info.display_size[0],
            "height": reading.info.display_size[1],
            **_clock(reading.timebase),
            **_cropped(reading.info),
        }
        if self.unit.count > 1:
            self.source_facts |= {"start_s": float(start_s), "end_s": float(end_s)}

    def _verdict(self, reading: Reading, windows: WindowFinder, count: int) -> Fate:
        if not count:
            if self.unit.index:  # its header promised more than there is
                return Fate(name="rejected", rule="past_end", message=reading.remarks)
            why = reading.damage or "no frame could be decoded"
            raise SourceError("decode", "NoFrames", why)
        if any(row["fate"] == "kept" for row in self.rows):
            return Fate(name="kept", message=reading.remarks)
        if self.rows:
            return Fate(name="rejected", rule="no_clip_kept", message=reading.remarks)
        contract = self.prep.contract
        return Fate(
            name="rejected",
            rule="too_short",
            score=float(max(0, windows.longest_frames) / reading.fps),
            threshold=float(contract.span / reading.fps),
            message=reading.remarks,
        )

    def _window(self, window: Window, held: Held, reading: Reading, shard: ShardWriter) -> None:
        contract = self.prep.contract
        ticks = reading.tick(window.start), reading.tick(window.end)
        if ticks == self._ticks:  # of a slow clock: the same again, which would have the same id
            return
        self._ticks = ticks
        frames = held.take(window, contract.step)
        fps = contract.payload_fps(reading.fps)
        with self._timed("scores"):
            small_THW = shrunk(frames)
            scores = score(frames, fps, small_THW)
            hashed = phash(small_THW)
        row = self._clip_row(window, reading)
        fate = PURGED if row["id"] in self.purged else self.keep.decide(scores)
        if fate.name == "kept":
            fate = self._store(row, frames, fps, shard)
        row |= scores | {"phash": hashed}
        row |= fate.columns()
        self.rows.append(row)

    def _clip_row(self, window: Window, reading: Reading) -> dict[str, object]:
        fps = self.prep.contract.payload_fps(reading.fps)
        start, end = reading.tick(window.start), reading.tick(window.end)
        identity = clip_id(
            source_sha256=self.unit.source_sha256,
            stream_index=reading.info.stream_index,
            start_pts=start,
            end_pts=end,
            timebase=reading.timebase,
            prep_digest=self.prep.digest(),
        )
        return {
            **base_row(self.unit, self.prep.digest(), self.keep.digest()),
            "kind": "clip",
            "id": identity,
            "stream_index": reading.info.stream_index,
            **_clock(reading.timebase),
            "start_pts": start,
            "end_pts": end,
            "start_s": float(reading.at_s(window.start)),
            "end_s": float(reading.at_s(window.end)),
            "shot_index": window.shot_index,
            "fps_num": fps.numerator,
            "fps_den": fps.denominator,
            "frame_count": self.prep.contract.frames,
            "width": reading.width,
            "height": reading.height,
            **_cropped(reading.info),
        }

    def _store(
        self, row: dict[str, object], frames: np.ndarray, fps: Fraction, shard: ShardWriter
    ) -> Fate:
        contract = self.prep.contract
        with self._timed("encode"):
            payload = (
                encode_still(frames[0])
                if contract.is_still
                else encode_clip(frames, self.prep, fps=fps)
            )
        try:
            with self._timed("check"):
                check_payload(payload, contract, fps=fps, reference=frames, ends_only=True)
        except ValueError as error:
            return Fate(
                name="failed", stage="check", error_class="BrokenContract", message=str(error)
            )
        sha256 = hashlib.sha256(payload)
        shard.append(_payload_row(row, payload, sha256.digest(), self.prep))
        kind = payload_kind(contract)
        row |= {"payload_kind": kind, "payload_sha256": sha256.hexdigest()}
        self.stats["payload_bytes"] = self.stats.get("payload_bytes", 0) + len(payload)
        return Fate(name="kept")

    def place(self, shard: ShardWriter) -> None:
        """Finish the shard and write each kept clip's place into its row."""
        kept = [row for row in self.rows if row["fate"] == "kept"]
        for row, location in zip(kept, shard.close(), strict=True):
            row |= {
                "shard": location.shard,
                "offset": location.offset,
                "length": location.length,
                "crc32": location.crc32,
            }

    def ledger_rows(self, fate: Fate) -> pa.Table:
        """Return all rows, the source's own with its fate first."""
        digests = self.prep.digest(), self.keep.digest()
        facts = {
            **self.source_facts,
            "num_candidates": len(self.rows),
            "num_kept": self.num_kept,
        }
        return to_table([source_row(self.unit, fate, *digests) | facts, *self.rows])

    @property
    def num_kept(self) -> int:
        """How many candidates were kept."""
        return sum(row["fate"] == "kept" for row in self.rows)


def _clock(timebase: Fraction) -> dict[str, object]:
    return {"timebase_num": timebase.numerator, "timebase_den": timebase.denominator}


def _cropped(info: VideoInfo) -> dict[str, object]:
    return {f"crop_{name}": value for name, value in asdict(info.crop).items()} if info.crop else {}


def _payload_row(
    row: dict[str, object], payload: bytes, sha256: bytes, prep: Prep
) -> dict[str, object]:
    still = prep.contract.is_still
    h264 = {"coder": CODER, "crf": prep.crf, "gop": prep.gop, "preset": prep.preset}
    params = PNG if still else h264
    same = (
        "source_uri stream_index timebase_num timebase_den start_pts end_pts "
        "fps_num fps_den frame_count width height"
    )
    return {
        **{name: row[name] for name in same.split()},
        "clip_id": bytes.fromhex(str(row["id"])),
        "source_sha256": bytes.fromhex(str(row["source_sha256"])),
        "color": SRGB if still else BT709,
        "payload_kind": payload_kind(prep.contract),
        "payload_params": json.dumps(params, sort_keys=True),
        "payload_sha256": sha256,
        "payload_crc32": zlib.crc32(payload),
        "prep_spec_digest": bytes.fromhex(prep.digest()),
        "payload": payload,
    }
