"""One pass over the frames of a source: cuts, windows, scores, keep rule, payloads, captions.

Memory holds one window of frames, not the video; what is kept goes to the shard at once.
"""

import hashlib
import json
import zlib
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa

from ingest.caption import Captions
from ingest.clip import Prep, clip_id
from ingest.decode import check_payload
from ingest.encode import encode_clip
from ingest.keep import Keep
from ingest.ledger import Fate, Unit, base_row, source_row, to_table
from ingest.reading import Reading
from ingest.schema import captions_schema
from ingest.scores import score
from ingest.shards import ShardWriter
from ingest.shots import CutFinder, Window, WindowFinder
from ingest.sources import SourceError

PAYLOAD_KIND = "h264_mp4"


@dataclass(kw_only=True)
class OnePass:
    """Rows of one unit as they come about: `read` the frames, `place` the shard, take the tables."""

    unit: Unit
    prep: Prep
    keep: Keep
    captions: Captions
    rows: list[dict[str, object]] = field(default_factory=list)
    captioned: list[dict[str, object]] = field(default_factory=list)
    stats: dict[str, float] = field(default_factory=dict)
    source_facts: dict[str, object] = field(default_factory=dict)

    def read(self, reading: Reading, shard: ShardWriter) -> Fate:
        """Pass all frames through cuts, windows, scores and the keep rule; return the fate."""
        cuts = CutFinder(self.prep)
        finder = WindowFinder(self.prep.contract, self.prep.cut_trim_frames)
        frames: deque[np.ndarray] = deque()
        first = slots = 0
        for frame_HWC in reading:
            if not slots:
                reading.wait_for_clock()
                if reading.hdr:
                    return Fate(name="rejected", rule="hdr", message="PQ or HLG transfer")
            slots += 1
            frames.append(frame_HWC)
            for is_cut in cuts.feed(frame_HWC):
                for window in finder.feed(is_cut=is_cut):
                    self._window(window, frames, first, reading, shard)
            while frames and first < finder.keep_from:
                frames.popleft()
                first += 1
        last = [window for is_cut in cuts.end() for window in finder.feed(is_cut=is_cut)]
        for window in [*last, *finder.end()]:
            self._window(window, frames, first, reading, shard)
        self._note(reading, slots)
        return self._verdict(reading, finder, slots)

    def _note(self, reading: Reading, slots: int) -> None:
        self.stats["slots"] = slots
        self.stats["source_s"] = slots / self.prep.contract.fps
        self.stats["frames_decoded"] = reading.frames_decoded
        self.stats["decode_errors"] = reading.num_errors
        self.source_facts = {
            "stream_index": reading.info.stream_index,
            "frames_decoded": reading.frames_decoded,
            "decode_errors": reading.num_errors,
            "width": reading.info.display_size[0],
            "height": reading.info.display_size[1],
            **_clock(reading.timebase),
        }

    def _verdict(self, reading: Reading, finder: WindowFinder, slots: int) -> Fate:
        if not slots:
            why = reading.damage or "no frame could be decoded"
            raise SourceError("decode", "NoFrames", why)
        if any(row["fate"] == "kept" for row in self.rows):
            return Fate(name="kept", message=reading.damage)
        if self.rows:
            return Fate(name="rejected", rule="no_clip_kept", message=reading.damage)
        contract = self.prep.contract
        return Fate(
            name="rejected",
            rule="too_short",
            score=max(0, finder.longest_frames) / contract.fps,
            threshold=contract.seconds,
            message=reading.damage,
        )

    def _window(
        self,
        window: Window,
        frames: deque[np.ndarray],
        first: int,
        reading: Reading,
        shard: ShardWriter,
    ) -> None:
        skip = window.start - first
        frames_THWC = np.stack([frames[skip + k] for k in range(window.end - window.start)])
        scores = score(frames_THWC, self.prep.contract.fps)
        row = self._clip_row(window, reading)
        fate = self.keep.decide(scores)
        if fate.name == "kept":
            fate = self._store(row, frames_THWC, shard)
        row |= scores
        row |= fate.columns()
        self.rows.append(row)

    def _clip_row(self, window: Window, reading: Reading) -> dict[str, object]:
        contract = self.prep.contract
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
            "start_s": window.start / contract.fps,
            "end_s": window.end / contract.fps,
            "shot_index": window.shot_index,
            "fps_num": contract.fps,
            "fps_den": 1,
            "frame_count": contract.frames,
            "width": reading.width,
            "height": reading.height,
        }

    def _store(self, row: dict[str, object], frames_THWC: np.ndarray, shard: ShardWriter) -> Fate:
        payload = encode_clip(frames_THWC, self.prep)
        try:
            check_payload(payload, self.prep.contract, reference_THWC=frames_THWC)
        except ValueError as error:
            return Fate(
                name="failed", stage="check", error_class="BrokenContract", message=str(error)
            )
        sha256 = hashlib.sha256(payload)
        shard.append(_payload_row(row, payload, sha256.digest(), self.prep))
        row |= {"payload_kind": PAYLOAD_KIND, "payload_sha256": sha256.hexdigest()}
        self.stats["payload_bytes"] = self.stats.get("payload_bytes", 0) + len(payload)
        video = Path(self.unit.source.uri)
        window_s = float(str(row["start_s"])), float(str(row["end_s"]))
        caption = self.captions.caption(video, *window_s)
        if caption is not None:
            self.captioned.append(
                {
                    "clip_id": row["id"],
                    "producer": caption.producer,
                    "payload_sha256": row["payload_sha256"],
                    "caption": caption.text,
                    "rank": caption.rank,
                }
            )
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

    def caption_rows(self) -> pa.Table:
        """Return the captions of the kept clips."""
        return pa.Table.from_pylist(self.captioned, schema=captions_schema())


def _clock(timebase: Fraction) -> dict[str, object]:
    return {"timebase_num": timebase.numerator, "timebase_den": timebase.denominator}


def _payload_row(
    row: dict[str, object], payload: bytes, sha256: bytes, prep: Prep
) -> dict[str, object]:
    params = {"crf": prep.crf, "gop": prep.gop, "preset": prep.preset}
    same = (
        "source_uri stream_index timebase_num timebase_den start_pts end_pts "
        "fps_num fps_den frame_count width height"
    )
    return {
        **{name: row[name] for name in same.split()},
        "clip_id": bytes.fromhex(str(row["id"])),
        "source_sha256": bytes.fromhex(str(row["source_sha256"])),
        "color": {"range": "tv", "primaries": "bt709", "transfer": "bt709", "matrix": "bt709"},
        "payload_kind": PAYLOAD_KIND,
        "payload_params": json.dumps(params, sort_keys=True),
        "payload_sha256": sha256,
        "payload_crc32": zlib.crc32(payload),
        "prep_spec_digest": bytes.fromhex(prep.digest()),
        "payload": payload,
    }
