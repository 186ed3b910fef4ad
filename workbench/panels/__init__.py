from workbench.panels import train
from workbench.panels.page import Page

PAGES: tuple[Page, ...] = (train.PAGE,)
"""The pages of the dashboard, in the order of its navigation."""
