"""Flow-Map Workbench: reinforcement-learning post-training of few-step flow-map image generators."""

__version__ = "0.1.0"
