"""Charts of curation as SVG: the funnel of clips, and how a score lies with the bounds that decide over it."""

from collections.abc import Sequence

import numpy as np

from ingest.keep import Rule
from jobs.page import text

BINS = 48
LEFT, WIDTH = 60, 700
TALL, LOW = 110, 60  # px of the histogram and of the curve below it
FAR = 4.0  # spans of the middle 98 % beyond which a few values may not stretch the axis
CURVE_POINTS = 121


def funnel(steps: Sequence[tuple[str, int, str]]) -> str:
    """Return a bar for what is left after each step of (name, how many are left, note)."""
    most = max((left for _, left, _ in steps), default=1) or 1
    lines = []
    for i, (name, left, note) in enumerate(steps):
        y, width = 4 + 24 * i, 380 * left / most
        lines.append(
            f'<text x="270" y="{y + 14}" text-anchor="end">{text(name)}</text>'
            f'<rect x="280" y="{y}" width="{width:.1f}" height="18" class="bar"/>'
            f'<text x="{288 + width:.1f}" y="{y + 14}">{left}'
            f'<tspan class="dim" dx="8">{text(note)}</tspan></text>'
        )
    height = 24 * len(steps) + 8
    return f'<svg viewBox="0 0 820 {height}" width="820" role="img">{"".join(lines)}</svg>'


def passing_share(values: np.ndarray, sign: int, thresholds: np.ndarray) -> np.ndarray:
    """Return which share of clips a bound at each threshold lets pass; one without a score passes."""
    known = np.sort(values[np.isfinite(values)])
    if sign > 0:
        out = len(known) - np.searchsorted(known, thresholds, side="right")
    else:
        out = np.searchsorted(known, thresholds, side="left")
    return 1.0 - out / max(1, len(values))


def spread(
    values: np.ndarray, kept: np.ndarray, bounds: Sequence[Rule], unit: str, signs: Sequence[int]
) -> str:
    """Return the histogram of a score over all candidates, its bounds, and what each bound would keep.

    `values` are NaN where a clip has no score; `kept` (bool) tells the darker part of each bar;
    `signs` are the directions for which the share that passes is drawn. "" without any value.
    """
    known = np.isfinite(values)
    if not known.any():
        return ""
    low, high = _ends(values[known], [bound.threshold for bound in bounds])
    inside = np.clip(values, low, high)
    all_counts, edges = np.histogram(inside[known], bins=BINS, range=(low, high))
    kept_counts, _ = np.histogram(inside[known & kept], bins=BINS, range=(low, high))
    parts = [*_bars(all_counts, kept_counts), *_curves(values, signs, low, high)]
    parts += [mark for bound in bounds for mark in _bound(bound, low, high)]
    foot = 20 + TALL + 22 + LOW
    cut = values[known].max() > high, values[known].min() < low
    parts.append(
        f'<path d="M{LEFT} {20 + TALL}h{WIDTH}M{LEFT} {foot}h{WIDTH}" class="axis"/>'
        f'<text x="{LEFT}" y="{foot + 16}">{edges[0]:.4g}{" and less" if cut[1] else ""}</text>'
        f'<text x="{LEFT + WIDTH}" y="{foot + 16}" text-anchor="end">{edges[-1]:.4g}'
        f"{' and more' if cut[0] else ''}</text>"
        f'<text x="{LEFT + WIDTH / 2}" y="{foot + 16}" text-anchor="middle" class="dim">{text(unit)}</text>'
        f'<text x="{LEFT - 6}" y="30" text-anchor="end" class="dim">{all_counts.max()}</text>'
        f'<text x="{LEFT - 6}" y="{foot - LOW + 8}" text-anchor="end" class="dim">100 %</text>'
        f'<text x="{LEFT - 6}" y="{foot}" text-anchor="end" class="dim">0 %</text>'
    )
    size = f'viewBox="0 0 820 {foot + 22}" width="820"'
    return f'<svg {size} role="img">{"".join(parts)}</svg>'


def _ends(known: np.ndarray, thresholds: Sequence[float]) -> tuple[float, float]:
    """Return the ends of the axis: all values, but for a few that lie far away; bounds that are near."""
    low, high = float(known.min()), float(known.max())
    first, last = (float(v) for v in np.quantile(known, (0.01, 0.99)))
    room = FAR * (last - first)
    if room > 0:
        low, high = max(low, first - room), min(high, last + room)
    span = (high - low) or abs(high) or 1.0
    near = [t for t in thresholds if low - 2 * span < t < high + 2 * span]
    low, high = min([low, *near]), max([high, *near])
    return (low, high) if high > low else (low - span / 2, high + span / 2)


def _at(value: float, low: float, high: float) -> float:
    return LEFT + WIDTH * (value - low) / (high - low)


def _bars(counts: np.ndarray, kept: np.ndarray) -> list[str]:
    most, width = max(1, counts.max()), WIDTH / BINS
    drawn = []
    for i, (number, inside) in enumerate(zip(counts.tolist(), kept.tolist(), strict=True)):
        for kind, part in (("rest", number), ("bar", inside)):
            tall = TALL * part / most
            if part:
                place = f'x="{LEFT + i * width:.1f}" y="{20 + TALL - tall:.1f}" '
                drawn.append(
                    f'<rect {place}width="{width - 1:.1f}" height="{tall:.1f}" class="{kind}"/>'
                )
    return drawn


def _curves(values: np.ndarray, signs: Sequence[int], low: float, high: float) -> list[str]:
    places, foot = np.linspace(low, high, CURVE_POINTS), 20 + TALL + 22 + LOW
    drawn = []
    for sign in signs:
        shares = passing_share(values, sign, places)
        path = " ".join(
            f"{_at(place, low, high):.1f},{foot - LOW * share:.1f}"
            for place, share in zip(places.tolist(), shares.tolist(), strict=True)
        )
        name, side = ("as a maximum", "end") if sign > 0 else ("as a minimum", "start")
        x = LEFT + WIDTH - 4 if sign > 0 else LEFT + 4
        drawn.append(
            f'<polyline points="{path}" class="line"/><text x="{x}" y="{foot - LOW - 6}" '
            f'text-anchor="{side}" class="dim">share that passes a bound {name}</text>'
        )
    return drawn


def _bound(bound: Rule, low: float, high: float) -> list[str]:
    if not low <= bound.threshold <= high:
        side, x, anchor = (
            ("left", LEFT, "start") if bound.threshold < low else ("right", LEFT + WIDTH, "end")
        )
        far = f"{text(bound.name)} {bound.threshold:g} lies far to the {side}"
        return [f'<text x="{x}" y="14" text-anchor="{anchor}" class="told">{far}</text>']
    x = _at(bound.threshold, low, high)
    anchor = "start" if x < LEFT + WIDTH / 2 else "end"
    told = f"{text(bound.name)} {bound.threshold:g}"
    return [
        f'<path d="M{x:.1f} 18V{20 + TALL + 22 + LOW}" class="bound"/>',
        f'<text x="{x:.1f}" y="14" text-anchor="{anchor}" class="told">{told}</text>',
    ]
