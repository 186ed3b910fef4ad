"""A run's memory, predicted in a process of its own: it is half a minute of Python, which would hold up a training beside it."""

import json
import subprocess
import sys
from typing import Any

from workbench.config import RunConfig, parse_config
from workbench.memory import GIB, advised, device_memory, memory_plan
from workbench.policies import choose_device

SECONDS = 600.0
"""After which a prediction is given up."""


def predict_memory(config: RunConfig, gib: float | None = None) -> dict[str, Any]:
    """The plan of a run as plain numbers, in bytes; see `MemoryPlan`.

    Args:
        gib: memory of the device that it is for; None for the one that is here.
    Raises: ValueError: if what the model is made of is not known, or it takes too long.
    """
    asked = json.dumps({"config": config.model_dump(mode="json"), "gib": gib})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "workbench.sizing"], input=asked, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the prediction took more than {SECONDS:.0f} s; try again when less is going on") from None
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines() or ["it said nothing"]
    if done.returncode:
        raise ValueError(lines[-1])
    plan: dict[str, Any] = json.loads(lines[-1])
    return plan


def main() -> None:
    """Read what is asked from stdin; the plan is the last line of stdout, a refusal that of stderr."""
    import torch

    asked = json.load(sys.stdin)
    try:
        config, gib = parse_config(asked["config"]), asked["gib"]
        device = torch.device(choose_device(config.compute.device))
        whole = int(gib * GIB) if gib else device_memory(device)
        plan = memory_plan(config, whole, accelerator=bool(gib) or device.type != "cpu")
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(1) from None
    print(json.dumps(plan.as_json() | {"advised": [advised(each) for each in plan.advice]}))


if __name__ == "__main__":
    main()
