"""A set as others' evaluations want it: VBench's and EvalCrafter's folders of videos, named as these look for them.

VBench takes `<prompt>-<index>.mp4` and a JSON of prompts, dimensions and videos; EvalCrafter `<number>.mp4`, one a prompt.
Prompts become file names there, so that two may be one name, or none: all that is checked before anything is written.
"""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ingest.files import atomic_folder
from pipelines.manifest import complete_rows
from pipelines.output import WrongInput

NAME_BYTES = 255
SHOWN = 3
Row = Mapping[str, Any]


def export(folder: Path, layout: str, out: Path) -> int:
    """Copy the videos of a complete set into the new folder `out` and return how many they are.

    Raises Incomplete for a set with holes, WrongInput for names that cannot be and for an `out` that is there already.
    """
    if layout not in LAYOUTS:
        raise WrongInput(f"layout: {layout!r} is not known; next: {' or '.join(LAYOUTS)}")
    if out.exists():
        raise WrongInput(f"out: {out} is there already; next: another folder")
    rows = complete_rows(folder)
    named = LAYOUTS[layout](rows)
    _check([name for name, _ in named])
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as part:
        for name, row in named:
            shutil.copyfile(folder / row["view_path"], part / name)
        if layout == "vbench":
            (part / "full_info.json").write_bytes(_full_info(named))
    return len(named)


def _vbench(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    return [(f"{row['prompt']}-{row['index']}.mp4", row) for row in rows]


def _evalcrafter(rows: Sequence[Row]) -> list[tuple[str, Row]]:
    """Name the first sample of each prompt by the numbers that the suite calls it: some prompts are there twice."""
    found = []
    for row in rows:
        names = json.loads(row["more"] or "{}").get("names") or [row["prompt_name"]]
        if not all(names):
            raise WrongInput(
                f"prompt {row['prompt_id']}: has no number of EvalCrafter's; next: sample its list of prompts"
            )
        if row["index"] == 0:
            found += [(f"{name}.mp4", row) for name in names]
    return found


LAYOUTS: dict[str, Callable[[Sequence[Row]], list[tuple[str, Row]]]] = {
    "vbench": _vbench,
    "evalcrafter": _evalcrafter,
}


def _check(names: Iterable[str]) -> None:
    """Raise WrongInput for names that no folder can hold, or that one folder cannot hold beside each other."""
    names = list(names)
    bad = [n for n in names if "/" in n or "\0" in n or len(n.encode()) > NAME_BYTES or "\n" in n]
    if bad:
        raise WrongInput(
            f"{len(bad)} prompts cannot be names of files ({_some(bad)}); next: leave them out, this layout has no other names"
        )
    # some file systems, and some who read such folders, know no case
    count = Counter(name.casefold() for name in names)
    twice = sorted({name for name in names if count[name.casefold()] > 1})
    if twice:
        raise WrongInput(
            f"{len(twice)} videos would have the name of another, but for case ({_some(twice)}); "
            "next: leave one of each out of the prompts"
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _full_info(named: Sequence[tuple[str, Row]]) -> bytes:
    """Return VBench's list, with the columns that its own list had."""
    by_prompt: dict[str, dict[str, Any]] = {}
    for name, row in named:
        more = json.loads(row["more"] or "{}")
        told = by_prompt.setdefault(row["prompt"], {"prompt_en": row["prompt"], **more})
        told.setdefault("dimension", [])
        told.setdefault("video_list", []).append(name)
    text = json.dumps(list(by_prompt.values()), indent=1, ensure_ascii=False)
    return (text + "\n").encode()
