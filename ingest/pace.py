"""How fast a file runs: the times of its packets, read while ffmpeg copies them."""

import threading
from typing import IO

from ingest import child
from ingest.clip import Prep
from ingest.rates import Pace, pace_of
from ingest.sources import SourceError
from ingest.streams import MAPPING, declared_fps, packet_times


def measured(command: list[str], prep: Prep) -> Pace:
    """Return the pace of the stream whose packets a command lists; raises SourceError."""
    log: list[str] = []
    with child.start(command, prep) as running:
        if running.stdout is None or running.stderr is None:  # never: both are pipes
            raise RuntimeError("ffmpeg was started without pipes")
        words = threading.Thread(target=_note_rate, args=(running.stderr, log), daemon=True)
        timer = threading.Timer(prep.decode_timeout_s, running.kill)
        words.start()
        timer.start()
        try:
            ticks, timebase = packet_times(
                line.decode("ascii", "replace") for line in running.stdout
            )
            in_time = timer.is_alive()
        finally:
            timer.cancel()
            running.kill()
            words.join()
    if not in_time:
        limit_s = prep.decode_timeout_s
        raise SourceError("probe", "Timeout", f"not read within decode_timeout_s={limit_s:g}")
    return pace_of(ticks if timebase else [], timebase, declared_fps(log))


def _note_rate(stream: IO[bytes], log: list[str]) -> None:
    for line in stream:  # to its end, for a full pipe would stop the reading
        if line.startswith(MAPPING):  # what was read before may be a file's own words
            log.clear()
        elif line.startswith(b"[Parsed_showinfo") and b"frame_rate:" in line and not log:
            log.append(line.decode("utf-8", "replace"))
