from workbench.panels import compare, pathlab, playground, runs, train
from workbench.panels.page import Page

PAGES: tuple[Page, ...] = (train.PAGE, runs.PAGE, playground.PAGE, compare.PAGE, pathlab.PAGE)
"""The pages of the dashboard, in the order of its navigation."""
