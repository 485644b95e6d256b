"""Small stages that keep their promises, for tests; module level, so that they can be pickled."""

import numpy as np

from ingest.stage import Needs, Objection, ScoreFact

BRIGHTNESS = ScoreFact(name="brightness", unit="grey level", range="[0, 255]", direction="middle")


class Shades:
    name, version = "shades", "v1"
    needs = Needs(frames=2, batch_clips=2)

    def __init__(self, prompt: str = "a {shade} clip", fail_on: str = "") -> None:
        self.prompt, self.fail_on = prompt, fail_on

    def settings(self):
        return {"prompt": self.prompt}

    def __call__(self, clips):
        if any(self.fail_on and self.fail_on in clip.facts["source_uri"] for clip in clips):
            raise RuntimeError(f"cannot look at {self.fail_on}")
        return [
            self.prompt.format(shade="light" if clip.frames_THWC.mean() > 90 else "dark")
            for clip in clips
        ]


class Brightness:
    name, version = "brightness", "v1"
    scores = (BRIGHTNESS,)
    needs = Needs(frames="all", batch_clips=3)

    def settings(self):
        return {}

    def __call__(self, clips):
        return [{"brightness": float(clip.frames_THWC.mean())} for clip in clips]


class Means:
    name, version = "means", "v1"

    def settings(self):
        return {}

    def __call__(self, clips):
        means = [clip.frames_THWC.mean(axis=(0, 1, 2)) + 1 for clip in clips]
        return [(mean / np.linalg.norm(mean)).astype(np.float32) for mean in means]


class Jumps:
    name, version = "jumps", "v1"

    def __init__(self, levels: float = 20.0) -> None:
        self.levels, self._before = levels, None

    def settings(self):
        return {"levels": self.levels}

    def look(self, small_HW, at_s):  # noqa: ARG002
        now = small_HW.astype(float)
        jump = 0.0 if self._before is None else np.abs(now - self._before).mean()
        self._before = now
        return [bool(jump > self.levels)]

    def end(self):
        return []


class NotStill:
    name, version = "not_still", "v1"
    needs_scores = ("motion",)

    def __init__(self, least=0.1):
        self.least = least

    def settings(self):
        return {"min": self.least}

    def __call__(self, rows):
        found = [row["motion"] for row in rows]
        return [
            Objection(score=m, threshold=self.least) if m is not None and m < self.least else None
            for m in found
        ]
