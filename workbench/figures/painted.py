"""A figure as a picture, drawn without a browser: for files that cannot bring a script along, such as a model card."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 560, 300
"""Of a picture as it is shown; its file has twice as many pixels each way."""

_FINE = 4  # drawn so many times larger, and then made smaller: this rounds edges
_FILE = 2
_INK, _SOFT, _LINE = "#151a22", "#565f6d", "#e3e7ec"
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 62, 50
_DASHES = {"dot": (3, 4), "dash": (8, 6)}
_APART = (60, 32)  # pixels between two ticks across and upward, about

Spot = tuple[float, float]


@dataclass(frozen=True)
class _Axis:
    """Where values lie: from `low` at `begin` to `high` at `end`, pixels; or categories side by side."""

    low: float
    high: float
    begin: float
    end: float
    names: tuple[str, ...] = ()

    def at(self, value: Any) -> float:
        number = self.names.index(str(value)) if str(value) in self.names else float(value)
        return self.begin + (number - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[tuple[float, str]]:
        """Places and what is written there."""
        if self.names:
            return [(self.at(name), name) for name in self.names]
        step = _round_step((self.high - self.low) * _APART[self.end < self.begin] / abs(self.end - self.begin))
        digits = max(0, -math.floor(math.log10(step)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [
            (self.at(i * step), f"{i * step:.{digits}f}" if digits < 6 else f"{i * step:.2g}") for i in range(first, last + 1)
        ]


def paint(chart: go.Figure, width: int = WIDTH, height: int = HEIGHT) -> Image.Image:
    """The lines, bands, marks and bars of a figure that are visible in it, with title, legend and axes, on white.

    Raises: ValueError: if the figure has nothing to draw.
    """
    traces = [trace for trace in chart.data if trace.type == "scatter" and trace.visible not in (False, "legendonly")]
    traces = [trace for trace in traces if trace.yaxis in (None, "y") and len(trace.x)]
    if not traces:
        raise ValueError(f"the figure {chart.layout.title.text!r} has no line to draw")
    painter = _Painter(width, height)
    x, y = _across(traces, width), _upward(traces, height)
    painter.frame(chart, x, y)
    for trace in sorted(traces, key=lambda trace: trace.fill is None):  # bands below lines
        painter.trace(trace, x, y)
    painter.legend([trace for trace in traces if trace.showlegend is not False and trace.name and trace.fill is None])
    return painter.picture.resize((_FILE * width, _FILE * height), Image.Resampling.LANCZOS)


class _Painter:
    """A picture that is drawn on, in units of its shown size."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.picture = Image.new("RGB", (_FINE * width, _FINE * height), "white")
        self.pen = ImageDraw.Draw(self.picture, "RGBA")

    def frame(self, chart: go.Figure, x: _Axis, y: _Axis) -> None:
        """Title, axes with their names, and what the figure marks across them."""
        self.write((16, 12), chart.layout.title.text or "", 16, _INK)
        for place, label in y.ticks():
            self.line([(x.begin, place), (x.end, place)], _LINE, 1)
            self.write((x.begin - 8, place), label, 13, _SOFT, "rm")
        for place, label in x.ticks():
            self.write((place, y.begin + 8), label, 13, _SOFT, "mt")
        self.line([(x.begin, y.begin), (x.end, y.begin)], "#b6bec9", 1)
        self.write(((x.begin + x.end) / 2, self.height - 12), chart.layout.xaxis.title.text or "iteration", 13, _SOFT, "mb")
        for shape in chart.layout.shapes:
            upright = shape.x0 == shape.x1
            spots = [(x.at(shape.x0), y.begin), (x.at(shape.x0), y.end)] if upright else []
            if not upright and y.low <= shape.y0 <= y.high:
                spots = [(x.begin, y.at(shape.y0)), (x.end, y.at(shape.y0))]
            self.line(spots, shape.line.color, shape.line.width or 1, shape.line.dash)
        for note in chart.layout.annotations:
            if note.text and note.xref == "x":
                self.write((x.at(note.x) + 5, y.end + 2), note.text, 13, note.font.color or _SOFT)

    def trace(self, trace: Any, x: _Axis, y: _Axis) -> None:
        spots = [(x.at(a), y.at(b)) if math.isfinite(b) else None for a, b in zip(trace.x, trace.y, strict=True)]
        if trace.fill:
            inside = [spot for spot in spots if spot is not None]
            self.pen.polygon([_larger(spot) for spot in inside], fill=_colour(trace.fillcolor))
            return
        colour, mode = trace.line.color or trace.marker.color, trace.mode or "lines"
        if "lines" in mode:
            for part in _unbroken(spots):
                self.line(part, colour, trace.line.width or 2, trace.line.dash)
        if trace.error_y.array is not None:
            up, down = trace.error_y.array, trace.error_y.arrayminus
            for a, b, more, less in zip(trace.x, trace.y, up, down if down is not None else up, strict=True):
                self.line([(x.at(a), y.at(b - less)), (x.at(a), y.at(b + more))], colour, 1.4)
        if "markers" in mode:
            radius = (trace.marker.size or 6) / 2
            hollow = str(trace.marker.symbol or "").endswith("open")
            for spot in spots:
                if spot is not None:
                    self.dot(spot, radius, colour, hollow)

    def legend(self, traces: Sequence[Any]) -> None:
        """Names of the lines, one beside the other below the title."""
        place = 16.0
        for trace in traces if len(traces) > 1 else ():
            colour = trace.line.color or trace.marker.color
            self.line([(place, 44), (place + 18, 44)], colour, 2.5, trace.line.dash)
            self.write((place + 24, 44), trace.name, 13, _SOFT, "lm")
            place += 24 + self.font(13).getlength(trace.name) / _FINE + 18

    def line(self, spots: Sequence[Spot], colour: Any, width: float, dash: str | None = None) -> None:
        parts = _dashed(spots, *_DASHES[dash]) if dash in _DASHES else [spots]
        for part in parts:
            if len(part) > 1:
                self.pen.line([_larger(spot) for spot in part], fill=_colour(colour), width=round(width * _FINE), joint="curve")

    def dot(self, spot: Spot, radius: float, colour: Any, hollow: bool) -> None:
        (a, b), r = _larger(spot), radius * _FINE
        fill = "white" if hollow else _colour(colour)
        self.pen.ellipse([a - r, b - r, a + r, b + r], fill=fill, outline=_colour(colour), width=round(1.6 * _FINE))

    def write(self, spot: Spot, text: str, size: int, colour: Any, anchor: str = "lt") -> None:
        self.pen.text(_larger(spot), text, fill=_colour(colour), font=self.font(size), anchor=anchor)

    def font(self, size: int) -> Any:
        return ImageFont.load_default(size * _FINE)


def _across(traces: Sequence[Any], width: int) -> _Axis:
    values = [value for trace in traces for value in trace.x]
    if any(isinstance(value, str) for value in values):
        names = tuple(dict.fromkeys(map(str, values)))
        names = tuple(sorted(names, key=lambda name: (float(name) if name.isdecimal() else math.inf, name)))
        return _Axis(-0.5, len(names) - 0.5, _LEFT, width - _RIGHT, names)
    low, high = min(0.0, *map(float, values)), max(map(float, values))
    return _Axis(low, high if high > low else low + 1, _LEFT, width - _RIGHT)


def _upward(traces: Sequence[Any], height: int) -> _Axis:
    values = [float(value) for trace in traces for value in trace.y if math.isfinite(value)]
    for trace in traces:
        if trace.error_y.array is not None:
            values += [float(b + more) for b, more in zip(trace.y, trace.error_y.array, strict=True)]
            values += [float(b - less) for b, less in zip(trace.y, trace.error_y.arrayminus, strict=True)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low = 0.0 if 0 <= low < 0.3 * high else low - margin
    return _Axis(low, high + margin, height - _BOTTOM, _TOP)


def _round_step(rough: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below."""
    unit = 10.0 ** math.floor(math.log10(rough))
    return next((unit * share for share in (1, 2, 5) if unit * share >= rough), 10 * unit)


def _unbroken(spots: Sequence[Spot | None]) -> Iterator[list[Spot]]:
    part: list[Spot] = []
    for spot in (*spots, None):
        if spot is not None:
            part.append(spot)
        elif part:
            yield part
            part = []


def _dashed(spots: Sequence[Spot], on: float, off: float) -> Iterator[list[Spot]]:
    """The drawn parts of a line, `on` pixels long with `off` between them."""
    walked, period = 0.0, on + off
    for (a, b), (c, d) in pairwise(spots):
        length, gone = math.hypot(c - a, d - b), 0.0
        while gone < length:
            phase = (walked + gone) % period
            step = min(length - gone, (on if phase < on else period) - phase)
            if phase < on:
                yield [(a + (c - a) * share, b + (d - b) * share) for share in (gone / length, (gone + step) / length)]
            gone += max(step, 1e-6)
        walked += length


def _larger(spot: Spot) -> Spot:
    return spot[0] * _FINE, spot[1] * _FINE


def _colour(colour: Any) -> Any:
    """A CSS colour as the library takes it."""
    text = str(colour or _SOFT)
    if not text.startswith("rgba"):
        return text
    red, green, blue, alpha = text[5:-1].split(",")
    return int(red), int(green), int(blue), round(255 * float(alpha))
