"""What the requests to one endpoint share: their pace, how it has answered, and whether it is told dead."""

import time
from threading import Event, Lock


class Line:
    """One request each `interval_s`, none while the endpoint asked to wait, none more once it is told dead."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._lock, self._ended = Lock(), Event()
        self._next_s = self._held_s = 0.0
        self._holds = self._silent = self._missed = 0
        self.replies = 0

    def wait(self) -> None:
        """Sleep until it is this request's turn, or the line has ended."""
        while True:
            with self._lock:
                begin_s = max(time.monotonic(), self._next_s)
                self._next_s = begin_s + self._interval_s
                holds = self._holds
            if not self.pause(max(0.0, begin_s - time.monotonic())):
                return
            with self._lock:
                if self._holds == holds:
                    return  # else it was held meanwhile: its turn is behind that

    def hold(self, wait_s: float) -> None:
        """Let nobody begin for so long."""
        with self._lock:
            self._held_s = max(self._held_s, time.monotonic() + wait_s)
            self._next_s, self._holds = self._held_s, self._holds + 1

    def pause(self, wait_s: float) -> bool:
        """Sleep so long, and return whether the line has not ended."""
        return not self._ended.wait(wait_s)

    def end(self) -> None:
        """Wake all who wait; nothing is sent any more."""
        self._ended.set()

    def heard(self) -> None:
        """Take note of a sign of life: a reply, whatever it says."""
        with self._lock:
            self.replies, self._silent = self.replies + 1, 0

    def answered(self) -> None:
        """Take note of a clip that got its answer."""
        with self._lock:
            self._missed = 0

    def missed(self, since: int) -> tuple[int, int]:
        """Take note of a clip that was given up; `since` is how many replies there were when it was begun.

        Returns how many were in a row, and how many of them while nobody was replied to.
        """
        with self._lock:
            self._missed += 1
            self._silent += self.replies == since
            return self._missed, self._silent
