"""Draw a trace as bars over time; tests/e2e/test_traces.py makes docs/pictures/trace.svg by it."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from attrs import frozen

_ROW, _NAMES, _BARS = 15, 330, 560
"""Pixels."""
_LEAST = 1.5
_COLOURS = {"criproxy": "#8250df", "virtlet": "#0969da"}
_STEP = "#2da44e"


@frozen
class Bar:
    """A span: where it is in the trace, and its time."""

    service: str
    name: str
    depth: int
    start: int
    """Nanoseconds."""
    end: int


def draw(title: str, bars: Sequence[Bar]) -> str:
    """An SVG with a row for each span; fonts are those of the reader."""
    first, last = min(bar.start for bar in bars), max(bar.end for bar in bars)
    scale = _BARS / (last - first)
    height = (len(bars) + 2) * _ROW
    width = _NAMES + _BARS + 90
    rows = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="monospace" font-size="10">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="{_ROW}" font-weight="bold">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars, 1):
        y = number * _ROW + 4
        left = _NAMES + (bar.start - first) * scale
        length = max(_LEAST, (bar.end - bar.start) * scale)
        colour = _COLOURS.get(bar.service, _STEP) if "/" in bar.name else _STEP
        name = escape(bar.name.rpartition("/")[2])
        said = f"{name} ({bar.service})" if "/" in bar.name else name
        rows.append(f'<text x="{8 + 12 * bar.depth}" y="{y + 11}">{said}</text>')
        rows.append(
            f'<rect x="{left:.1f}" y="{y + 3}" width="{length:.1f}" height="{_ROW - 5}" '
            f'fill="{colour}"/>'
        )
        milliseconds = (bar.end - bar.start) / 1e6
        end = min(left + length + 4, width - 56)
        rows.append(f'<text x="{end:.1f}" y="{y + 11}">{milliseconds:.1f} ms</text>')
    return "\n".join([*rows, "</svg>", ""])
