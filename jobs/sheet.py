"""The contact sheet of an evaluation set: frames of its samples prompt by prompt, beside their videos' files.

It lies in the set's folder and links to the videos there; pictures are embedded, every text from outside is escaped.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ingest.decode import payload_frames
from ingest.encode import thumbnail
from ingest.files import atomic_write
from jobs.page import page, strip, table, text
from pipelines.manifest import Asked, read_set

NAME = "contact.html"
MOST = 96  # samples with pictures: a page of some MB, made in seconds
MOST_FAILED = 50
THUMB_PX = 160
Row = Mapping[str, Any]


def write(folder: Path) -> Path:
    """Write the page of a set, unless it is there for the same samples, and return its path."""
    path, rows = folder / NAME, asked_rows(folder)
    state = Asked(tuple(f"{row['identity']} {row['status']}" for row in rows))
    mark = f"<!-- {state.digest} -->"
    if not path.exists() or mark not in path.read_text(encoding="utf-8"):
        atomic_write(path, page(f"set {folder.name}", [mark, *parts(folder, rows)]))
    return path


def asked_rows(folder: Path) -> list[Row]:
    """Return the rows of the samples that the set was last asked for, prompt by prompt in the order of their file."""
    asked, rows = Asked.read(folder), read_set(folder)
    if asked is None:
        return list(rows)
    found = {row["identity"]: row for row in rows}
    return [found[identity] for identity in asked.identities if identity in found]


def parts(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Return what the page says."""
    done = [row for row in rows if row["status"] == "done"]
    failed = [row for row in rows if row["status"] != "done"]
    shown = chosen(done)
    found = [f"<h1>{text(folder.name)}</h1>", _facts(done, failed)]
    left = len(done) - len(shown)
    if left:
        told = f"shown are {len(shown)} of {len(done)} samples, evenly over the prompts"
        found.append(f'<p class="small">{told}; all are in the manifest</p>')
    prompt = None
    for row in shown:
        if row["prompt_id"] != prompt:
            found += ["</div>"] if prompt is not None else []
            found += [f"<h3>{text(row['prompt'] or '(no text)')}</h3>", '<div class="grid">']
            prompt = row["prompt_id"]
        found.append(_sample(folder, row))
    found += ["</div>"] if prompt is not None else []
    if failed:
        found.append(f"<h2>failed: {len(failed)}</h2>")
        told = [(r["prompt"][:120], str(r["index"]), str(r["error"])) for r in failed[:MOST_FAILED]]
        found.append(table(("prompt", "sample", "why"), told))
    return found


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Return at most MOST rows, in their order, as many prompts as can be, all with as many samples."""
    place: Counter[str] = Counter()
    ranked = []
    for at, row in enumerate(rows):
        ranked.append((place[row["prompt_id"]], at))
        place[row["prompt_id"]] += 1
    rounds: dict[int, list[int]] = {}
    for rank, at in ranked:
        rounds.setdefault(rank, []).append(at)
    taken: list[int] = []
    for rank in sorted(rounds):
        room = MOST - len(taken)
        found = rounds[rank]
        if len(found) > room:
            found = [found[i * len(found) // room] for i in range(room)]
        taken += found
        if len(taken) >= MOST:
            break
    return [rows[at] for at in sorted(taken)]


def _facts(done: Sequence[Row], failed: Sequence[Row]) -> str:
    if not done:
        return f'<p class="small">no sample; {len(failed)} failed</p>'
    prompts = len({row["prompt_id"] for row in done})
    first = done[0]
    size = (
        f"{first['frames']} frames of {first['width']} x {first['height']} px at {first['fps']} fps"
    )
    seconds = sum(row["wall_s"] or 0.0 for row in done) / len(done)
    told = f"{len(done)} samples of {prompts} prompts, {len(failed)} failed; {size}"
    told += f"; {seconds:.1f} s a sample" if seconds else ""
    weights = [(k, first[f"{k}_digest"]) for k in ("base", "motion", "ssr") if first[f"{k}_digest"]]
    named = " &middot; ".join(f"{k} <code>{text(v[:12])}</code>" for k, v in weights)
    return f'<p class="small">{text(told)}</p><p class="small">{named}</p>'


def _sample(folder: Path, row: Row) -> str:
    title = f"sample {row['index']}, seed {row['seed'] or 'unknown'}"
    note = f"{row['identity'][:12]}, {row['task'] or 'text'}"
    shown = strip(_frames(folder, row), title, note)
    return f'<a href="{text(quote(row["view_path"]))}">{shown}</a>'


def _frames(folder: Path, row: Row) -> list[bytes]:
    count = row["frames"]
    try:
        payload = (folder / row["view_path"]).read_bytes()
        frames = payload_frames(payload, indices=sorted({0, count // 2, count - 1}))
    except (OSError, ValueError):
        return []  # `sample --verify` is the command that tells of damage
    return [thumbnail(frame_HWC, width_px=THUMB_PX) for frame_HWC in frames]
