"""One batch of clips through a stage: read payloads, decode the wanted frames, ask, and check the answers."""

import faulthandler
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import numpy as np

from ingest.decode import payload_frames
from ingest.ledger import MESSAGE_CHARS, printable
from ingest.objects import Root
from ingest.shards import CorruptPayload, read_payload
from ingest.stage import Failure, Needs, Seen, needs_of

Facts = Mapping[str, Any]
# Text, scores by name, or a vector of float16 as bytes; or why there is none.
Answer = str | dict[str, float | None] | bytes | Failure
NO_FRAMES = np.empty((0, 0, 0, 3), np.uint8)
STDERR = 2
LONGEST_S = 1e6  # the watchdog counts no further


class BadAnswers(RuntimeError):
    """A stage answered what it must not: another number of answers, or something of another kind."""

    retryable = False


class Annotator:
    """A stage at work; called with the facts of a batch of clips, it returns an answer for each.

    A clip whose payload cannot be read gets a Failure. What the stage raises passes through. This
    process is ended when the stage takes longer than `call_timeout_s` (0 = as long as it likes).
    """

    def __init__(self, make: Callable[[], Any], root: Root, call_timeout_s: float = 0.0) -> None:
        self._stage, self._root, self._timeout_s = make(), root, call_timeout_s

    def __call__(self, batch: Sequence[Facts]) -> list[Answer]:
        """Return an answer for each clip; raises BadAnswers."""
        needs = needs_of(self._stage)
        looked = [self._seen(facts, needs) for facts in batch]
        seen = [clip for clip in looked if isinstance(clip, Seen)]
        with _ended_after(self._timeout_s):
            answers = list(self._stage(seen)) if seen else []
        if len(answers) != len(seen):
            raise BadAnswers(f"{self._stage.name}: {len(answers)} answers for {len(seen)} clips")
        told = iter(answers)
        return [clip if isinstance(clip, Failure) else _plain(next(told)) for clip in looked]

    def _seen(self, facts: Facts, needs: Needs) -> Seen | Failure:
        try:
            frames_THWC = NO_FRAMES if needs.frames == 0 else frames_of(self._root, facts, needs)
        except (CorruptPayload, FileNotFoundError, ValueError) as error:
            return Failure(error_class=type(error).__name__, message=_line(error))
        fps = Fraction(facts["fps_num"] or 0, facts["fps_den"] or 1)
        return Seen(clip_id=facts["clip_id"], frames_THWC=frames_THWC, fps=float(fps), facts=facts)


def annotate_batch(
    batch: Sequence[Facts], *, make: Callable[[], Any], root: Root, call_timeout_s: float
) -> list[Answer]:
    """Do what an Annotator does, once."""
    return Annotator(make, root, call_timeout_s)(batch)


@contextmanager
def _ended_after(limit_s: float) -> Iterator[None]:
    """End this process, with the stacks of its threads on stderr, unless left within the limit."""
    if not limit_s:
        yield
        return
    # Not a thread or signal of Python's: a stage may hang in native code, holding the interpreter's lock.
    faulthandler.dump_traceback_later(min(limit_s, LONGEST_S), exit=True, file=STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def frames_of(root: Root, facts: Facts, needs: Needs) -> np.ndarray:
    """Return the frames of a stored clip that a stage wants, the middles of as many equal parts.

    Raises CorruptPayload, FileNotFoundError, ValueError.
    """
    place = facts["shard"], facts["offset"], facts["length"], facts["crc32"]
    payload = read_payload(root, *place, clip_id=facts["clip_id"])
    count = facts["frame_count"]
    return payload_frames(
        payload,
        kind=facts["payload_kind"],
        indices=None if needs.frames == "all" else middles(count, needs.frames),
        shape=(count, facts["height"], facts["width"]),
    )


def middles(total: int, count: int) -> list[int]:
    """Return the indices of the frames in the middle of `count` equal parts, all where there are fewer."""
    count = min(count, total)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


def _plain(answer: Any) -> Answer:
    """Return an answer as it travels and is stored."""
    if isinstance(answer, (str, Failure)):
        return answer
    if isinstance(answer, np.ndarray) and answer.ndim == 1 and answer.dtype.kind == "f":
        if not np.isfinite(answer).all():
            return Failure(error_class="NotFinite", message="the embedding holds NaN or infinity")
        return answer.astype("<f2").tobytes()
    if isinstance(answer, Mapping):
        return {str(name): _score(value) for name, value in answer.items()}
    raise BadAnswers(f"an answer is {type(answer).__name__}, which no annotation holds")


def _score(value: Any) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _line(error: BaseException) -> str:
    return printable(str(error))[:MESSAGE_CHARS]
