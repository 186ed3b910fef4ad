"""How fast the Path lab is: updates of its policy, and walks of its particles with their tests."""

import time
from typing import Any

from workbench.pathlab import Data, WalkRequest, one_thread, walk
from workbench.plane import Lever, PlaneLearner, PlaneSettings

DRAWN = ((-3.0, -2.0), (-1.0, 2.0), (1.0, -2.0), (3.0, 2.0))
DATA = (*(Data(name=name) for name in ("double_ring", "moons", "grid", "spiral")), Data(name="drawn", strokes=(DRAWN,)))


def bench_pathlab(seconds: float = 4.0, particles: int = 2000) -> dict[str, Any]:
    """On one thread, as the page works.

    Returns: for each distribution the updates per second of a policy of four steps, after its first second, and the seconds of a
        walk in 4, 16 and 64 steps with an energy test at its nodes.
    """
    found: dict[str, Any] = {"particles": particles}
    with one_thread():
        for data in DATA:
            learner = PlaneLearner(PlaneSettings(data=data), Lever())
            learner.learn_for(1.0)
            began = time.perf_counter()
            updates = learner.learn_for(seconds)
            rate = updates / (time.perf_counter() - began)
            found[data.name] = {"updates_per_second": round(rate, 1)}
            for steps in (4, 16, 64):
                walk(WalkRequest(data=data, steps=steps, particles=particles, seed=1))  # what a page remembers from before
                began = time.perf_counter()
                walk(WalkRequest(data=data, steps=steps, particles=particles, seed=2))
                found[data.name][f"walk_seconds_{steps}"] = round(time.perf_counter() - began, 3)
    return found
