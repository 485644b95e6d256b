"""What a tracking store has not confirmed yet: one file of JSON lines a run, locked for as long as its writer lives.

Every record goes to the file first and leaves it when the store has it, so that neither an absent store nor a kill loses one;
a record may therefore be sent twice, and carries its own time so that the second is recognised.
"""

import contextlib
import fcntl
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Record = dict[str, Any]
# up to the last @ before the path: passwords are written with one in them, whatever the standard says
USERINFO = re.compile(r"(\w[\w+.-]*://)[^/\s\"']+@")
KEYS = re.compile(
    r"([?&](?:[\w-]*(?:token|password|secret|signature|credential)|api_?key|key|sig)=)[^&\s\"']+",
    re.IGNORECASE,
)
SUFFIX = ".jsonl"
MAX_PARAM_CHARS = 6000


class Spool:
    """The records of one run on their way, in order; raises OSError when its file cannot be opened."""

    def __init__(self, folder: Path, run_id: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.run_id = run_id
        self._path = folder / f"{run_id}{SUFFIX}"
        self._file = self._path.open("a+", encoding="utf-8", errors="replace")
        self._lock = threading.Lock()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._waiting = self._read()

    def append(self, record: Record) -> None:
        """Add a record; it is on disk when this returns, or OSError is raised and it waits in memory alone."""
        with self._lock:
            self._waiting.append(record)
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def waiting(self) -> list[Record]:
        """Return what is not confirmed, oldest first."""
        with self._lock:
            return list(self._waiting)

    def confirm(self, num_records: int) -> None:
        """Forget the oldest records: the store has them."""
        with self._lock:
            del self._waiting[:num_records]
            if not self._waiting:
                self._file.truncate(0)

    def close(self) -> None:
        """Give the file up, and remove it when nothing waits in it."""
        with self._lock, contextlib.suppress(OSError):
            if not self._waiting:
                self._path.unlink(missing_ok=True)
            self._file.close()

    def _read(self) -> list[Record]:
        self._file.seek(0)
        text = self._file.read()
        if text and not text.endswith("\n"):
            self._file.write("\n")
        found = []
        for line in text.splitlines():
            # A kill may have torn the last line.
            with contextlib.suppress(ValueError):
                record = json.loads(line)
                if isinstance(record, dict):
                    found.append(record)
        return found


def spool_of(folder: Path, uri: str) -> Path:
    """Return where records on their way to one store wait: what one store lacks, another would refuse, and it were lost."""
    return folder / hashlib.sha256(without_secrets(uri).encode()).hexdigest()[:12]


def leftovers(folder: Path) -> list[Spool]:
    """Open what dead writers left behind; those of living ones are passed over."""
    found = []
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError):
            found.append(Spool(path.parent, path.name.removesuffix(SUFFIX)))
    return found


def without_secrets(text: str) -> str:
    """Return the text with user names, passwords and keys taken out of its URIs."""
    return KEYS.sub(r"\1...", USERINFO.sub(r"\1", text))


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as text under dotted names, free of secrets; lists become JSON."""
    out: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out |= flat(value, f"{name}.")
            continue
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        out[name] = without_secrets(text)
    return out


def shortened(text: str) -> str:
    """Return a text of at most as many characters as a store takes; what is cut off is named by the digest of the whole."""
    if len(text) <= MAX_PARAM_CHARS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"{text[: MAX_PARAM_CHARS - 100]}... ({len(text)} characters, sha256 {digest})"
