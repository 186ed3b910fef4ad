from workbench.panels import compare, experiments, pathlab, playground, rewards, runs, train
from workbench.panels.page import Page

PAGES: tuple[Page, ...] = (train.PAGE, runs.PAGE, playground.PAGE, compare.PAGE, rewards.PAGE, pathlab.PAGE, experiments.PAGE)
"""The pages of the dashboard, in the order of its navigation."""
