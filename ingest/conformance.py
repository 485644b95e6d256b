"""Does a stage keep its promises? The test that we ship for what others write.

    from ingest.conformance import check
    assert check("captioner", MyCaptioner(prompt="...")) == ()

Made clips go through it, alone and in batches, twice and in a copy; nothing is written anywhere.
"""

import copy
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from ingest.clips import schema
from ingest.stage import Failure, Kind, Objection, Seen, needs_of, problem_of

NUM_CLIPS, FRAMES, DIM = 5, 16, 512
TOLERANCE = 1e-4  # batched arithmetic may differ in the last bits
LENGTH_TOLERANCE = 1e-2


def check(kind: Kind, stage: Any, *, dim: int = DIM) -> tuple[str, ...]:
    """Return every broken promise in a line, nothing for a stage that keeps them all.

    A stage that reads embeddings is given some of `dim` numbers.

    Promised are the members of the protocol, answers of the right number and type without NaN,
    equal for equal clips whatever is beside them in a batch, equal in a copy as another process
    gets it, and that clips are left as they were.
    """
    problem = problem_of(stage, kind)
    if problem:
        return (problem,)
    try:
        twin = pickle.loads(pickle.dumps(stage))
    except Exception as error:  # noqa: BLE001  somebody else's code may raise anything
        return (f"cannot be pickled before its first call: {type(error).__name__}: {error}",)
    try:
        if kind == "shot_detector":
            return tuple(_detects(stage, twin))
        if kind == "keep_rule":
            return tuple(_rules(stage, twin))
        return tuple(_answers(stage, twin, made_clips(stage, dim=dim), _checks(kind, stage)))
    except Exception as error:  # noqa: BLE001  as above
        return (f"raises {type(error).__name__}: {error}",)


def made_clips(stage: Any = None, *, dim: int = DIM) -> list[Seen]:
    """Return clips of several sizes and rates with all the facts that a stage may ask for."""
    wanted = needs_of(stage).frames
    count = FRAMES if wanted == "all" else wanted
    random = np.random.default_rng(0)
    clips = []
    for number in range(NUM_CLIPS):
        height, width = 48 + 16 * (number % 2), 64 + 16 * number
        frames_THWC = random.integers(0, 256, (count, height, width, 3), np.uint8)
        frames_THWC[:, :, : width // 2] //= number + 1
        frames_THWC.flags.writeable = number == 0  # payloads are often mapped
        clips.append(
            Seen(
                clip_id=f"{number:064x}",
                frames_THWC=frames_THWC,
                fps=(16.0, 23.976, 60.0)[number % 3],
                facts=_facts(number, (height, width), random.normal(size=dim)),
            )
        )
    return clips


def _facts(number: int, size: tuple[int, int], vector: np.ndarray) -> dict[str, Any]:
    facts: dict[str, Any] = dict.fromkeys(schema().names)
    return facts | {
        "clip_id": f"{number:064x}",
        "source_uri": f"/videos/two dogs {number}.mp4",
        "start_s": 5.0 * number,
        "end_s": 5.0 * number + 5,
        "frame_count": FRAMES,
        "width": size[1],
        "height": size[0],
        "fps_num": 16,
        "fps_den": 1,
        "motion": 0.1 * number,
        "caption": "two dogs run",
        "label": "",
        "licence": "",
        "consent": "",
        "embedding": (vector / np.linalg.norm(vector)).astype(np.float32),
    }


def _answers(stage: Any, twin: Any, clips: list[Seen], wrong: Callable[[Any], str]) -> list[str]:
    before = [(clip.frames_THWC.copy(), copy.deepcopy(dict(clip.facts))) for clip in clips]
    whole = list(stage(clips))
    if len(whole) != len(clips):
        return [f"gives {len(whole)} answers for {len(clips)} clips"]
    problems = sorted({text for answer in whole if (text := wrong(answer))})
    again = list(stage(clips))
    alone = [answer for clip in clips for answer in stage([clip])]
    turned = list(reversed(stage(list(reversed(clips)))))
    other = list(twin(clips))
    for name, answers in (
        ("is not deterministic: the same clips again get other answers", again),
        ("depends on the batch: a clip alone gets another answer", alone),
        ("depends on the order of a batch", turned),
        ("gives other answers in another process (a pickled copy)", other),
    ):
        if not problems and not _same(whole, answers):
            problems.append(name)
    if list(stage([])):
        problems.append("gives answers for no clips")
    if any(not _untouched(clip, was) for clip, was in zip(clips, before, strict=True)):
        problems.append("changes the clips that it is given")
    return problems


def _untouched(clip: Seen, before: tuple[np.ndarray, dict[str, Any]]) -> bool:
    frames_THWC, facts = before
    return np.array_equal(clip.frames_THWC, frames_THWC) and _same(dict(clip.facts), facts)


def _checks(kind: Kind, stage: Any) -> Callable[[Any], str]:
    if kind == "captioner":
        return _wrong_caption
    if kind == "embedder":
        return _wrong_vector
    names = {fact.name for fact in stage.scores}
    return lambda answer: _wrong_scores(answer, names)


def _wrong_caption(answer: Any) -> str:
    if isinstance(answer, (str, Failure)):
        return ""
    return f"answers with {type(answer).__name__}, not with text or a Failure"


def _wrong_vector(answer: Any) -> str:
    if isinstance(answer, Failure):
        return ""
    if not isinstance(answer, np.ndarray) or answer.ndim != 1 or answer.dtype.kind != "f":
        return "answers with something else than a vector of floats or a Failure"
    if not np.isfinite(answer).all() or abs(np.linalg.norm(answer) - 1) > LENGTH_TOLERANCE:
        return "answers with a vector that is not finite and of length 1"
    return ""


def _wrong_scores(answer: Any, names: set[str]) -> str:
    if isinstance(answer, Failure):
        return ""
    if not isinstance(answer, Mapping) or set(answer) != names:
        return f"answers with something else than a value for each of {', '.join(sorted(names))}"
    for name, value in answer.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, float)):
            return f"score {name} is {type(value).__name__}, not float or None"
        if value is not None and not math.isfinite(value):
            return f"score {name} is {value}: what cannot be had is None"
    return ""


def _detects(stage: Any, twin: Any) -> list[str]:
    random = np.random.default_rng(1)
    shots = [random.integers(0, 256, (36, 64), np.uint8) for _ in range(3)]
    frames = [shots[number // 20] for number in range(60)]
    kept = [frame.copy() for frame in frames]
    first, second = _flags(stage, frames), _flags(twin, frames)
    problems = []
    if not all(isinstance(flag, (bool, np.bool_)) for flag in first):
        problems.append("gives flags that are no truth values")
    if len(first) != len(frames):
        problems.append(f"gives {len(first)} flags for {len(frames)} frames")
    if first != second:
        problems.append("is not deterministic: a copy gives other flags")
    if any(not np.array_equal(*pair) for pair in zip(frames, kept, strict=True)):
        problems.append("changes the frames that it is given")
    return problems


def _flags(detector: Any, frames: Sequence[np.ndarray]) -> list[bool]:
    flags = [f for n, frame in enumerate(frames) for f in detector.look(frame, Fraction(n, 16))]
    return [*flags, *detector.end()]


def _rules(stage: Any, twin: Any) -> list[str]:
    values = (None, 0.0, -1.0, 0.5, 1e9)
    rows = [dict.fromkeys(stage.needs_scores, value) for value in values]
    kept = copy.deepcopy(rows)
    whole = list(stage(rows))
    if len(whole) != len(rows):
        return [f"gives {len(whole)} answers for {len(rows)} clips"]
    problems = []
    if not all(answer is None or isinstance(answer, Objection) for answer in whole):
        problems.append("answers with something else than None or an Objection")
    if whole != list(stage(rows)) or whole != list(twin(rows)):
        problems.append("is not deterministic: the same rows again get other answers")
    if whole != [answer for row in rows for answer in stage([row])]:
        problems.append("depends on the batch: a clip alone gets another answer")
    if rows != kept:
        problems.append("changes the rows that it is given")
    return problems


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.shape == other.shape and bool(np.allclose(one, other, atol=TOLERANCE))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(one == other)
