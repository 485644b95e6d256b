"""Everything a person reads on the terminal: progress and hints on standard error, results on standard output.

A terminal gets one live line per stage; anything else gets plain lines, at most one every ten seconds per stage.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

PLAIN_EVERY_S = 10.0
LIVE_EVERY_S = 0.1
CELL_CHARS = 72


def say(line: str) -> None:
    """Write one line of talk to standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def error(line: str, *, code: int, as_json: bool) -> None:
    """Write an error as one line, or as one JSON object on standard output."""
    if as_json:
        cause, _, following = line.partition("; next: ")
        out(json.dumps({"error": cause, "next": following, "exit": code}, ensure_ascii=False))
    else:
        for part in line.splitlines() or [""]:
            say(f"kinoray: {part}")


def out(text: str) -> None:
    """Write a result to standard output."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def again(line: str, shown: str) -> str:
    """Write a line of talk over the one `shown` before on a terminal, elsewhere only when it is another; return it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}")
        sys.stderr.flush()
    elif line != shown:
        say(line)
    return line


def stopping() -> None:
    """Answer the first Ctrl-C; a plain write, because a signal may arrive in the middle of another."""
    os.write(2, b"\nkinoray: stopping after what is in flight; once more stops at once\n")


def result(values: Mapping[str, Any], *, as_json: bool) -> None:
    """Write a result: one JSON line, or an aligned table without nested values."""
    if as_json:
        out(json.dumps(values, ensure_ascii=False))
        return
    flat = {
        k: v for k, v in values.items() if not isinstance(v, (dict, list)) and v not in ("", None)
    }
    width = max((len(k) for k in flat), default=0)
    for key, value in flat.items():
        out(f"  {key:<{width}}  {_number(value)}")


def table(rows: list[tuple[str, ...]]) -> None:
    """Write rows as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    for row in rows:
        out("  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())


def cell(value: Any) -> str:
    """Return a value as the text of one table cell: one line, not too long, nothing for null."""
    text = f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
    text = " ".join(text.split())
    return text if len(text) <= CELL_CHARS else f"{text[: CELL_CHARS - 3]}..."


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Progress:
    """Turns the events of a run into lines; call it with each event."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty() and not quiet
        self._started = time.monotonic()
        self._shown: dict[str, float] = {}
        self._open_line = False

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Show one event; progress is thinned out, everything else is one line."""
        kind = event.get("event")
        if self._quiet and kind != "warning":
            return
        if kind == "progress":
            self._progress(event)
        elif kind in ("stage", "note", "warning"):
            self._close()
            mark = "warning: " if kind == "warning" else ""
            say(f"{self._clock()} {mark}{event.get('text', '')}")

    def _progress(self, event: Mapping[str, Any]) -> None:
        stage = str(event.get("stage", event.get("verb", "")))
        last = bool(event.get("total")) and event.get("done") == event.get("total")
        now = time.monotonic()
        if not last and now - self._shown.get(stage, -1e9) < (
            LIVE_EVERY_S if self._live else PLAIN_EVERY_S
        ):
            return
        self._shown[stage] = now
        line = f"{self._clock()} {stage}: {progress_text(event)}"
        if self._live:
            sys.stderr.write(f"\r\x1b[K{line}")
            sys.stderr.flush()
            self._open_line = True
            if last:
                self._close()
        else:
            say(line)

    def _close(self) -> None:
        if self._open_line:
            sys.stderr.write("\n")
            self._open_line = False

    def _clock(self) -> str:
        elapsed = int(time.monotonic() - self._started)
        return f"[{elapsed // 60:02d}:{elapsed % 60:02d}]"


def progress_text(event: Mapping[str, Any]) -> str:
    """Return a progress event in words."""
    parts = [
        f"{event.get('done', 0)} of {event['total']}"
        if event.get("total")
        else f"{event.get('done', 0)}"
    ]
    if event.get("text"):
        parts.append(str(event["text"]))
    if event.get("left_s"):
        parts.append(f"about {float(event['left_s']):.0f} s left")
    return ", ".join(parts)
