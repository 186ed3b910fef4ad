from workbench.panels import compare, pathlab, playground, rewards, runs, train
from workbench.panels.page import Page

PAGES: tuple[Page, ...] = (train.PAGE, runs.PAGE, playground.PAGE, compare.PAGE, rewards.PAGE, pathlab.PAGE)
"""The pages of the dashboard, in the order of its navigation."""
