"""The building blocks of every page: one self-contained file, nothing loaded from anywhere, all text escaped."""

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.6rem;margin:0}h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid #d8dde6}
table{border-collapse:collapse;font-size:14px}td,th{padding:.15rem .9rem .15rem 0;text-align:left;vertical-align:top}
.grid{display:flex;flex-wrap:wrap;gap:14px}.card{width:200px;font-size:13px}.card video{width:200px;background:#000}
.small{color:#566;font-size:13px}code{background:#eef1f5;padding:0 .25em}svg text{font:12px system-ui,sans-serif}
"""


def page(title: str, parts: Iterable[str]) -> bytes:
    """Return a whole page."""
    head = f'<meta charset="utf-8"><title>Kinoray: {text(title)}</title><style>{STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html><html lang="en">{head}<body>{body}</body></html>\n'.encode()


def card(video: bytes, title: str, note: str) -> str:
    """Return a video with its title and a note."""
    data = base64.b64encode(video).decode()
    return (
        f'<div class=card><video controls loop muted preload=auto src="data:video/mp4;base64,{data}"></video>'
        f"<div>{text(title)}</div><div class=small>{text(note)}</div></div>"
    )


def picture(image: bytes, title: str, note: str) -> str:
    """Return a PNG with its title and a note."""
    data = base64.b64encode(image).decode()
    return (
        f'<div class="card"><img width="200" alt="{text(title)}" src="data:image/png;base64,{data}">'
        f'<div>{text(title)}</div><div class="small">{text(note)}</div></div>'
    )


def histogram(name: str, counts: Sequence[int], ends: tuple[float, float]) -> str:
    """Return bars of equal bins from the first to the last value."""
    most, width = max(counts, default=1) or 1, 480 / max(1, len(counts))
    boxes = "".join(
        f'<rect x="{200 + i * width:.1f}" y="{70 - 60 * n / most:.1f}" width="{width - 1:.1f}" '
        f'height="{60 * n / most:.1f}" fill="#4a77b4"/>'
        for i, n in enumerate(counts)
    )
    return (
        f'<svg width="800" height="92" role="img"><text x="190" y="62" text-anchor="end">{text(name)}</text>'
        f'{boxes}<path d="M200 70H680" stroke="#999"/><text x="200" y="86">{ends[0]:.3g}</text>'
        f'<text x="680" y="86" text-anchor="end">{ends[1]:.3g}</text>'
        f'<text x="690" y="20">{sum(counts)} clips</text></svg>'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells are escaped."""
    cells = "".join(f"<th>{text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{text(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def bars(bars: Sequence[tuple[str, int]]) -> str:
    """Return a bar for each name and number."""
    most = max((n for _, n in bars), default=1) or 1
    lines = []
    for i, (name, number) in enumerate(bars):
        y, width = 6 + 26 * i, 520 * number / most
        lines.append(
            f'<text x="190" y="{y + 15}" text-anchor="end">{text(name)}</text>'
            f'<rect x="200" y="{y}" width="{width:.1f}" height="20" fill="#4a77b4"/>'
            f'<text x="{208 + width:.1f}" y="{y + 15}">{number}</text>'
        )
    return f'<svg width="800" height="{26 * len(bars) + 10}" role="img">{"".join(lines)}</svg>'


def curve(points: Sequence[tuple[int, float]]) -> str:
    """Return a line through points of (step, loss)."""
    if len(points) < 2:
        return ""
    last, top = points[-1][0], max(loss for _, loss in points) or 1.0
    path = " ".join(f"{60 + 700 * s / last:.1f},{170 - 150 * v / top:.1f}" for s, v in points)
    return (
        '<svg width="800" height="200" role="img"><path d="M60 20V170H760" fill="none" stroke="#999"/>'
        f'<text x="52" y="26" text-anchor="end">{top:.3g}</text><text x="52" y="174" text-anchor="end">0</text>'
        f'<text x="760" y="190" text-anchor="end">step {last}</text><text x="66" y="16">training loss</text>'
        f'<polyline points="{path}" fill="none" stroke="#b4534a" stroke-width="1.5"/></svg>'
    )


def text(value: str) -> str:
    """Return text that shows as it is."""
    return html.escape(value, quote=True)
