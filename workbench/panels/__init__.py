from workbench.panels import compare, train
from workbench.panels.page import Page

PAGES: tuple[Page, ...] = (train.PAGE, compare.PAGE)
"""The pages of the dashboard, in the order of its navigation."""
