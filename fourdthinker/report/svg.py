"""Charts as plain SVG text, coloured by the style sheet of the page (so that light and dark both work)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_MOST_POINTS = 300  # more do not show at this width


@dataclass(frozen=True)
class Bar:
    """One line of an interval chart; numbers are fractions. mark: a second, hollow dot (greedy accuracy)."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None


def line_chart(
    points: Sequence[tuple[float, float]], title: str, *, width: int = 320, height: int = 150
) -> str:
    """A curve over training steps: the raw values faint, a running mean on top.

    points: (step, value), by rising step; values that are not finite are left out. The vertical range is
    that of the running mean and of the middle 96 % of the raw values, so that a single spike does not
    flatten the rest. `data-points` has x and y in the picture, step and value of each point, for the script.
    """
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not finite:
        return f'<svg viewBox="0 0 {width} {height}" role="img"><title>{escape(title)}: no data</title></svg>'
    raw = thin(finite)
    mean = smooth(raw)
    ordered = sorted(y for _, y in raw)
    cut = len(ordered) // 50
    visible = ordered[cut : len(ordered) - cut] + [y for _, y in mean]
    ticks = nice_ticks(min(visible), max(visible), 3)
    low, high = min(ticks[0], min(visible)), max(ticks[-1], max(visible))
    left, right, top, bottom = 46, 8, 8, 20
    first, last = raw[0][0], raw[-1][0]

    def point(x: float, y: float) -> str:
        along = (x - first) / (last - first) if last > first else 0.5
        up = (min(max(y, low), high) - low) / (high - low)
        column = left + along * (width - left - right)
        return f"{column:.1f},{height - bottom - up * (height - top - bottom):.1f}"

    read = " ".join(f"{point(x, y)},{short(x)},{short(y)}" for x, y in raw)
    parts = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" tabindex="0" '
        f'aria-label="{escape(title)}" data-points="{read.replace("−", "-")}">'
    ]
    parts.append(
        f"<title>{escape(title)}: {short(raw[0][1])} at the start, {short(mean[-1][1])} at the end</title>"
    )
    for tick in ticks:
        y = point(first, tick).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y}" dy="0.32em" text-anchor="end">{short(tick)}</text>')
    for step, anchor in ((first, "start"), (last, "end")):
        x = point(step, low).split(",")[0]
        parts.append(f'<text x="{x}" y="{height - 4}" text-anchor="{anchor}">{short(step)}</text>')
    if len(raw) > 1:
        parts.append(f'<polyline class="raw" points="{" ".join(point(*p) for p in raw)}"/>')
        parts.append(f'<polyline class="curve" points="{" ".join(point(*p) for p in mean)}"/>')
    else:
        x, y = point(*raw[0]).split(",")
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>')
    parts.append(
        f'<g class="reading" visibility="hidden"><line y1="{top}" y2="{height - bottom}"/>'
        f'<circle class="dot" r="3"/><text y="{top + 8}"></text></g>'
    )
    return "".join(parts) + "</svg>"


def interval_chart(
    bars: Sequence[Bar],
    title: str,
    *,
    lines: Sequence[tuple[str, float]] = (),
    width: int = 720,
) -> str:
    """Values with their 95 % intervals, one under the other.

    `lines` are named references, drawn from top to bottom.
    """
    values = [v for b in bars for v in (b.value, b.low, b.high, b.mark) if v is not None] + [
        v for _, v in lines
    ]
    values += [0.0] if min(values, default=0.0) < 0.4 else []
    ticks = nice_ticks(min(values, default=0.0), max(values, default=1.0), 5)
    low, high = ticks[0], ticks[-1]
    step, top, left, right = 30, 26 if lines else 8, 214, 66
    height = top + step * len(bars) + 24

    def px(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = [
        f'<svg class="intervals" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">'
    ]
    parts.append(f"<title>{escape(title)}</title>")
    for tick in ticks:
        parts.append(
            f'<line class="grid" x1="{px(tick):.1f}" x2="{px(tick):.1f}" y1="{top}" y2="{height - 22}"/>'
        )
        parts.append(
            f'<text x="{px(tick):.1f}" y="{height - 6}" text-anchor="middle">{100 * tick:.4g}</text>'
        )
    ends: list[float] = []  # right ends of the names already placed, to keep them apart
    for name, value in sorted(lines, key=lambda line: line[1]):
        x = max(px(value), *(e + 8 for e in ends)) if ends else px(value)
        ends.append(x + 6.4 * len(name))
        parts.append(
            f'<line class="reference" x1="{px(value):.1f}" x2="{px(value):.1f}" y1="16" y2="{height - 22}"/>'
        )
        parts.append(f'<text class="reference" x="{x:.1f}" y="12">{escape(name)}</text>')
    for i, bar in enumerate(bars):
        y = top + step * (i + 0.5)
        parts.append(
            f'<text class="name" x="{left - 12}" y="{y}" dy="0.32em" text-anchor="end">'
            f"{escape(bar.label)}</text>"
        )
        if bar.low is not None and bar.high is not None:
            parts.append(
                f'<line class="whisker" x1="{px(max(bar.low, low)):.1f}" x2="{px(min(bar.high, high)):.1f}" '
                f'y1="{y}" y2="{y}"/>'
            )
        if bar.mark is not None:
            parts.append(f'<circle class="mark" cx="{px(bar.mark):.1f}" cy="{y}" r="4.5"/>')
        parts.append(f'<circle class="dot" cx="{px(bar.value):.1f}" cy="{y}" r="4.5"/>')
        parts.append(
            f'<text class="value" x="{width - 4}" y="{y}" dy="0.32em" text-anchor="end">'
            f"{100 * bar.value:.1f} %</text>"
        )
    return "".join(parts) + "</svg>"


def thin(points: Sequence[tuple[float, float]], most: int = _MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: the means of equal runs."""
    if len(points) <= most:
        return list(points)
    run = math.ceil(len(points) / most)
    out = []
    for start in range(0, len(points), run):
        part = points[start : start + run]
        out.append((sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)))
    return out


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Running mean over a twentieth of the points on either side, as far as there are any."""
    half = len(points) // 20
    out = []
    for i, (x, _) in enumerate(points):
        part = points[max(0, i - half) : i + half + 1]
        out.append((x, sum(y for _, y in part) / len(part)))
    return out


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` + 1 round numbers that cover [low, high], never fewer than 2.

    Steps are 1, 2 or 5 times a power of ten.
    """
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        around = abs(low) * 0.1 or 1.0
        low, high = low - around, high + around
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) if step > 1e-9 else i * step for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number in at most six or so characters."""
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")
