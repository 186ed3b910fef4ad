"""The places of charts in a layout, with heading and sentence before there is anything to draw."""

from html import escape
from typing import Any


def chart_card(name: str, figure: Any, classes: str = "wb-chart") -> str:
    """A card for a chart of this name.

    Args:
        figure: an empty one, for its heading, its height and its sentence on what good looks like.
    """
    layout = figure.layout
    head = f'<div class="wb-head"><h2>{escape(layout.title.text)}</h2><div class="wb-chips"></div></div>'
    waiting = '<p class="wb-wait">Drawn as soon as there is something to draw.</p>'
    plot = f'<div class="plot" role="group" style="height: {layout.height}px">{waiting}</div>'
    hint = f'<p class="wb-hint">{escape(layout.meta["healthy"])}</p>'
    return f'<article class="wb-card {classes}" data-chart="{name}">{head}{plot}{hint}</article>'
