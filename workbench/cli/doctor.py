"""`doctor`: is this machine ready, and if not, what to do about it."""

import importlib.metadata
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from workbench.cli.options import BadArguments, Changes, Json, Runs, StoreUrl, bad_arguments, read_changes
from workbench.cli.screen import show, show_json

_PORT = 7860  # where the dashboard listens by default
_GIB = 2**30
_NEEDED = ("accelerate", "gradio", "peft", "plotly", "psutil", "pydantic", "rich", "safetensors", "scipy", "sqlalchemy", "torch")


@dataclass(frozen=True)
class Finding:
    """One question about the machine, its answer, and what to do where it is not green."""

    name: str
    level: Literal["green", "amber", "red"]
    sentence: str
    remedy: str = ""


def doctor(
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="NAME", help="tell what memory this configuration takes, instead")
    ] = None,
    changes: Changes = None,
    memory: Annotated[float | None, typer.Option(min=0.001, metavar="GIB", help="memory of a device that is not here")] = None,
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Check Python, packages, device, memory, disk, the record of runs, the port and the model's weights.

    With --preset: the peak memory of a run, part by part, before anything is fetched or loaded, and what to change where it does
    not fit.
    """
    if preset is not None:
        _tell_memory(preset, changes, memory, as_json)
        return
    if changes or memory:
        raise BadArguments("--set and --memory are about a configuration: name it with --preset NAME")
    findings = list(examine(runs, store))
    healthy = all(finding.level != "red" for finding in findings)
    if as_json:
        show_json({"healthy": healthy, "findings": findings})
    else:
        for finding in findings:
            colour = {"green": "green", "amber": "yellow", "red": "red"}[finding.level]
            show(f"[{colour}]{finding.level:5}[/]  {finding.name:9} {finding.sentence}")
            if finding.remedy:
                show(f"{'':17}-> {finding.remedy}")
    if not healthy:
        raise typer.Exit(1)


def _tell_memory(preset: str, changes: list[str] | None, memory: float | None, as_json: bool) -> None:
    """What a configuration takes, against the device that it would run on or one of `memory` GiB."""
    import torch

    from workbench.config import configure
    from workbench.memory import advised, device_memory, memory_plan
    from workbench.policies import choose_device

    with bad_arguments():
        config = configure(preset, read_changes(changes))
        device = torch.device(choose_device(config.compute.device))
        whole = int(memory * _GIB) if memory else device_memory(device)
        plan = memory_plan(config, whole, accelerator=memory is not None or device.type != "cpu")
    if as_json:
        show_json(plan.as_json())
    else:
        show("always there")
        for name, count in plan.parts.items():
            show(f"  {name:18} {count / _GIB:8.2f} GiB")
        show("at most, with these")
        for name, count in plan.stages.items():
            show(f"  {name:18} {count / _GIB:8.2f} GiB{'  <- the peak' if count == plan.total else ''}")
        verdict = "it fits" if plan.fits else "it does not fit"
        show(f"{plan.total / _GIB:.1f} of {whole / _GIB:.0f} GiB: {verdict}, a twelfth of it left to its libraries")
        for each in plan.advice:
            show(f"  -> --set {advised(each)}" if each.value != "" else f"  -> {advised(each)}")
    if not plan.fits:
        raise typer.Exit(1)


def examine(runs: str, store: str | None) -> Iterator[Finding]:
    """Every finding; a check that breaks is a red finding and does not keep the others from being made."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": check_python,
        "packages": check_packages,
        "device": check_device,
        "memory": check_memory,
        "disk": lambda: check_disk(Path(runs)),
        "record": lambda: check_record(runs, store),
        "port": check_port,
        "model": check_model,
        "browser": check_browser,
    }
    for name, check in checks.items():
        try:
            yield check()
        except Exception as error:
            yield Finding(name, "red", f"{type(error).__name__}: {error}", "install again with: make app")


def check_python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "green", f"Python {version} at {sys.executable}.")


def check_packages() -> Finding:
    """Whether every package that the project declares is installed, and none that is known to break others is broken."""
    missing = [name for name in _NEEDED if not _version(name)]
    if missing:
        return Finding("packages", "red", f"not installed: {', '.join(missing)}.", "install with: make app")
    if _version("torchvision"):
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError, OSError) as error:
            sentence = f"torchvision is installed but does not load ({error}), which breaks the loading of models."
            return Finding("packages", "red", sentence, f"{sys.executable} -m pip uninstall torchvision")
    return Finding("packages", "green", f"torch {_version('torch')}, gradio {_version('gradio')}, peft {_version('peft')}.")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def check_device() -> Finding:
    import torch

    if torch.cuda.is_available():
        gib = torch.cuda.get_device_properties(0).total_memory / _GIB
        return Finding("device", "green", f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}, {gib:.0f} GiB each.")
    if torch.backends.mps.is_available():
        return Finding("device", "green", "Apple GPU through mps.")
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    sentence = f"No GPU: {threads} CPU threads on {cores} cores, which the embedded model is made for."
    if threads > cores:
        return Finding("device", "amber", sentence, f"set OMP_NUM_THREADS={cores}: more threads than cores slow each other down")
    return Finding("device", "green", sentence)


def check_memory() -> Finding:
    import psutil

    free, total = psutil.virtual_memory().available / _GIB, psutil.virtual_memory().total / _GIB
    sentence = f"{free:.1f} of {total:.0f} GiB free."
    if free < 1:
        return Finding("memory", "red", sentence, "close other programs: a run of the embedded model needs about 1 GiB")
    return Finding("memory", "green" if free >= 2 else "amber", sentence, "" if free >= 2 else "a second run at once may not fit")


def check_disk(runs: Path) -> Finding:
    existing = next(path for path in (runs.absolute(), *runs.absolute().parents) if path.exists())
    if not existing.is_dir():
        return Finding("disk", "red", f"{existing} is a file.", "choose another folder with --runs")
    free = shutil.disk_usage(existing).free / _GIB
    sentence = f"{free:.1f} GiB free for {runs.absolute()}."
    if free < 0.2:
        return Finding("disk", "red", sentence, "free some space, or choose another folder with --runs")
    return Finding("disk", "green" if free >= 2 else "amber", sentence, "" if free >= 2 else "a long run may fill it")


def check_record(runs: str, store: str | None) -> Finding:
    """Whether runs can be recorded; opening the record creates it where it is not there."""
    from workbench.store import Store, StoreError

    try:
        record = Store(runs, store)
        count = len(record.runs())
    except (StoreError, ValueError) as error:
        return Finding("record", "red", str(error), "make the folder writable, or choose another with --runs")
    if not os.access(record.location, os.W_OK):
        return Finding("record", "red", f"{record.location} cannot be written.", "make it writable, or choose another")
    return Finding("record", "green", f"{count} runs in {record.location}.")


def check_port() -> Finding:
    if _is_free(_PORT):
        return Finding("port", "green", f"{_PORT} is free for the dashboard.")
    other = next(port for port in range(_PORT + 1, 65536) if _is_free(port))
    return Finding("port", "amber", f"{_PORT} is in use, perhaps by a dashboard that runs.", f"python app.py --port {other}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def check_model() -> Finding:
    import torch

    from workbench.models import MODELS

    started = time.monotonic()
    try:
        generator = MODELS["shapes"]().load(torch.device("cpu"))
    except ValueError as error:
        return Finding("model", "red", str(error), "fetch the weights again, or make them: python -m workbench pretrain shapes")
    size = sum(parameter.numel() for parameter in generator.network.parameters()) / 1e6
    return Finding("model", "green", f"the embedded model loads in {time.monotonic() - started:.1f} s, {size:.1f} M parameters.")


def check_browser() -> Finding:
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found:
        return Finding("browser", "green", f"{found} for the page tests.")
    return Finding("browser", "amber", "no Chromium: only the page tests need it.", "apt-get install chromium")
