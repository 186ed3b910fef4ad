"""The morning digest as one page that opens without a network."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment
from torch.nn.functional import pad

from workbench.experiments.digest import Digest, told_count, told_duration
from workbench.pictures import data_sheet, read_sprite
from workbench.records import when
from workbench.store import Store

SHOWN = 8
"""Most pictures of a run, before and now."""
_SEAM = 127  # grey between two of them


def digest_page(store: Store, found: Digest) -> str:
    """A digest as HTML, its pictures inside."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": told_duration, "clock": when}
    report = (files("workbench") / "report.html").read_text()
    style = report.partition("<style>")[2].partition("</style>")[0]  # every page that is kept looks alike
    pairs = [(pair, sheets) for pair in found.pairs if (sheets := _sheets(store, pair))]
    template = environment.from_string((files("workbench") / "digest.html").read_text())
    return template.render(digest=found, pairs=pairs, style=style, count=told_count, shown=SHOWN)


def _sheets(store: Store, pair: Any) -> list[dict[str, Any]]:
    """The first pictures of both evaluations, each in one row; none where a file is missing."""
    try:
        images = [read_sprite(store.image_path(pair.run, each["sprite"]), each) for each in (pair.first, pair.last)]
    except ValueError:
        return []
    shown = min(SHOWN, *map(len, images))
    return [data_sheet(pad(each[:shown], (1, 1, 1, 1), value=_SEAM), shown) for each in images]
