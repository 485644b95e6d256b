"""The building blocks of every page: one self-contained file, nothing loaded from anywhere, all text escaped."""

import base64
import html
from collections.abc import Iterable, Sequence

STYLE = """
:root{color-scheme:light dark;--ink:#1c2330;--paper:#fff;--dim:#566;--line:#d8dde6;--code:#eef1f5;--bar:#4a77b4;
--rest:#b9c6d8;--bound:#b4534a;--good:#2f7d4f}
@media(prefers-color-scheme:dark){:root{--ink:#dde3ec;--paper:#14181f;--dim:#9aa7b5;--line:#323a46;--code:#242b35;
--bar:#6d9bdc;--rest:#3d4a5c;--bound:#e58379;--good:#6cc391}}
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem}
body{color:var(--ink);background:var(--paper)}
h1{font-size:1.6rem;margin:0;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem;border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
table{border-collapse:collapse;font-size:14px;margin:.4rem 0 1rem}
td,th{padding:.15rem .9rem .15rem 0;text-align:left;vertical-align:top}
td{overflow-wrap:anywhere}summary{cursor:pointer}
.grid{display:flex;flex-wrap:wrap;gap:14px}.card{width:200px;font-size:13px;overflow-wrap:anywhere}
.card video{width:200px;background:#000}
.strip{width:330px;font-size:13px;overflow-wrap:anywhere}.strip img{width:108px;margin-right:2px;background:#000}
.small{color:var(--dim);font-size:13px}code{background:var(--code);padding:0 .25em}
svg{max-width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .dim{fill:var(--dim)}
.bar{fill:var(--bar)}.rest{fill:var(--rest)}.axis{stroke:var(--dim);fill:none}.line{stroke:var(--bar);fill:none;stroke-width:1.6}
.bound{stroke:var(--bound);stroke-dasharray:4 3;stroke-width:1.4}svg .told{fill:var(--bound)}
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


def strip(frames: Sequence[bytes], title: str, note: str) -> str:
    """Return some frames (JPEG) side by side with a title and a note; without frames the words alone."""
    shown = "".join(
        f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(frame).decode()}">'
        for frame in frames
    )
    return (
        f'<div class="strip"><div>{shown}</div><div>{text(title)}</div>'
        f'<div class="small">{text(note)}</div></div>'
    )


def details(title: str, inside: str) -> str:
    """Return something that a click unfolds."""
    return f"<details><summary>{text(title)}</summary>{inside}</details>"


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
            f'<rect x="200" y="{y}" width="{width:.1f}" height="20" class="bar"/>'
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
        '<svg width="800" height="200" role="img"><path d="M60 20V170H760" class="axis"/>'
        f'<text x="52" y="26" text-anchor="end">{top:.3g}</text><text x="52" y="174" text-anchor="end">0</text>'
        f'<text x="760" y="190" text-anchor="end">step {last}</text><text x="66" y="16">training loss</text>'
        f'<polyline points="{path}" class="line"/></svg>'
    )


def text(value: str) -> str:
    """Return text that shows as it is."""
    return html.escape(value, quote=True)
