from collections.abc import Callable

from workbench.panels import train
from workbench.studio import Studio

PANELS: dict[str, Callable[[Studio], None]] = {"Train": train.build}
"""One page per entry: its name, and the function that lays it out."""
