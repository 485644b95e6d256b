"""Whether the files of a set are those of its manifest: decoded, and their frames hashed."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import pool
from pipelines import videos
from pipelines.context import Context, Recorder
from pipelines.manifest import read_set

A_FEW = 4  # looked at whenever a set is continued


@dataclass(frozen=True, kw_only=True, slots=True)
class Paper:
    """The row of one sample and the folder of its set."""

    folder: str
    row: dict[str, Any]


def damaged(
    folder: Path, known: Collection[str], *, everything: bool, context: Context, say: Recorder
) -> set[str]:
    """Return which of the known samples have files that are not theirs, and say so; a few are looked at, or `everything`."""
    if not known:
        return set()
    rows = [row for row in read_set(folder) if row["identity"] in known]
    chosen = rows if everything else rows[:: -(-len(rows) // A_FEW)]
    papers = [Paper(folder=str(folder.resolve()), row=row) for row in chosen]
    few = {} if everything else {paper.row["identity"]: wrong(paper) for paper in papers}
    told = few or _all(papers, context, say)
    bad = {identity: words for identity, words in told.items() if words}
    for identity, words in bad.items():
        say.warn(f"sample {identity[:12]} is made again: {words}")
    if bad and not everything:
        say.warn(
            "files of this set were changed; next: the same command with --verify looks at all"
        )
    return set(bad)


def _all(papers: list[Paper], context: Context, say: Recorder) -> dict[str, str]:
    context.start_cluster()
    units = (pool.Unit(key=paper.row["identity"], payload=paper) for paper in papers)
    found: dict[str, str] = {}
    for outcome in pool.run_tasks(wrong, units, config=pool.Pool(), stop=context.stop):
        if outcome.failure is not None:
            words = f"sample {outcome.key[:12]} cannot be looked at: {outcome.failure.message}"
            raise RuntimeError(f"{words}; next: the same command once the storage answers")
        found[outcome.key] = outcome.value
        say.progress(len(found), len(papers), stage="verify")
    return found


def wrong(paper: Paper) -> str:
    """Return what is wrong with the files of a sample, "" when nothing is; OSError where they cannot be read now."""
    row, folder = paper.row, Path(paper.folder)
    try:
        videos.read_frames(folder / row["base_path"], row["base_sha256"])
        if row["lossless_path"] != row["base_path"]:
            videos.read_frames(folder / row["lossless_path"], row["frames_sha256"])
        seen = videos.num_frames(folder / row["view_path"])
    except FileNotFoundError as error:
        return str(error)
    except OSError:
        raise  # storage that does not answer has damaged nothing
    except Exception as error:  # noqa: BLE001  a damaged file may make a decoder raise anything
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        "" if seen == row["frames"] else f"{row['view_path']} has {seen} of {row['frames']} frames"
    )
