"""Executors for more than one machine: Slurm through submitit, and a Dask cluster that is there already."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from workbench.config import validated
from workbench.experiments.executors import LOG, Executor, Local, additions, command, last_words, said
from workbench.experiments.queue import Queue
from workbench.settings import Settings
from workbench.store import Store

_WITH_SLURM = ("READY", "PENDING", "REQUEUED", "CONFIGURING", "RUNNING")

_REACH_SECONDS = 5.0  # in which a Dask cluster has to answer


class Slurm(Settings):
    """Jobs of a Slurm cluster, through submitit, for a folder of runs and a database that its nodes share."""

    partition: str | None = Field(None, description="which partition, the cluster's own choice if empty")
    gpus: int | None = Field(None, ge=0, le=64, description="GPUs of each run")
    cpus: int | None = Field(None, ge=1, le=1024, description="CPU cores of each run")
    memory_gb: int | None = Field(None, ge=1, description="memory of each run, GB")
    minutes: int = Field(24 * 60, ge=1, description="minutes after which Slurm ends a run")
    account: str | None = Field(None, description="which account pays")
    qos: str | None = Field(None, description="quality of service")
    cluster: Literal["slurm", "local"] = Field("slurm", description="slurm, or local: submitit's own processes, to try it here")

    def start(self, store: Store, run: str, device: str | None) -> "SlurmJob":
        """Hand a job to Slurm, which chooses its devices itself, unless one for this run is with it already.

        Raises: RuntimeError: if it cannot.
        """
        submitit = _load("submitit")
        entry = Queue(store).entry(run)
        folder = store.folder(run) / "slurm" / str(entry.attempt if entry else 1)  # an earlier attempt's job may be ending yet
        log = store.folder(run) / LOG
        for submitted in folder.glob("*_submitted.pkl") if self.cluster == "slurm" else ():
            job = submitit.SlurmJob(folder=folder, job_id=submitted.name.partition("_")[0])
            if job.state in _WITH_SLURM:  # handed over by a dispatcher that ended while the job waited
                return SlurmJob(job, log)
        asked: dict[str, Any] = {
            "timeout_min": self.minutes,
            "gpus_per_node": self.gpus,
            "cpus_per_task": self.cpus,
            "mem_gb": self.memory_gb,
        }
        asked |= {"slurm_partition": self.partition, "slurm_account": self.account, "slurm_qos": self.qos, "name": run}
        try:
            with store.disk(folder), _in_environment(additions(store, None)):
                executor = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
                executor.update_parameters(**{name: value for name, value in asked.items() if value is not None})
                job = executor.submit(submitit.helpers.CommandFunction(_logged(store, run), verbose=False))
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise RuntimeError(f"Slurm refused the job: {error}") from error
        return SlurmJob(job, log)


class SlurmJob:
    """A job of a cluster and the log of its run."""

    def __init__(self, job: Any, log: Path) -> None:
        self._job = job
        self._log = log

    def ended(self) -> str | None:
        """None while it waits or goes on; then the last it said, empty where it ended well."""
        if not self._job.done():
            return None
        failed = self._job.exception() is not None
        return (last_words(self._log) or f"its job ended as {self._job.state}") if failed else ""

    def cancel(self) -> None:
        """Take it out of Slurm's queue."""
        self._job.cancel()


class Dask(Settings):
    """Tasks of a Dask cluster that is there already, whose workers share the folder of runs and the database."""

    address: str = Field(description="of its scheduler, as in tcp://host:8786")

    def start(self, store: Store, run: str, device: str | None) -> "DaskTask":
        """Hand a task to the cluster, whose workers have their own devices. Raises: OSError: if it cannot be reached."""
        client = _dask(self.address)
        values = _Unprinted(additions(store, None))  # a cluster logs what its tasks were given
        future = client.submit(run_command, _logged(store, run), values, str(store.folder(run) / LOG), pure=False, retries=0)
        return DaskTask(future)


class DaskTask:
    """A task of a cluster."""

    def __init__(self, future: Any) -> None:
        self._future = future

    def ended(self) -> str | None:
        """None while it waits or goes on; then the last it said, empty where it ended well."""
        if not self._future.done():
            return None
        if self._future.status == "finished":
            return str(self._future.result())
        return f"its task is {self._future.status}" + (f": {self._future.exception()}" if self._future.status == "error" else "")

    def cancel(self) -> None:
        """Take it out of the cluster's queue."""
        self._future.cancel()


EXECUTORS: dict[str, Callable[..., Executor]] = {"local": Local, "slurm": Slurm, "dask": Dask}


def read_lane(text: str) -> tuple[str, Executor]:
    """A lane and its executor from text such as `slurm:partition=gpu,gpus=1`.

    Raises: ValueError: names what is wrong, and the choices.
    """
    name, _, options = text.partition(":")
    if name not in EXECUTORS:
        raise ValueError(f"unknown lane {name!r}; choose from: {', '.join(EXECUTORS)}, as in slurm:partition=gpu,gpus=1")
    values = {}
    for option in filter(None, options.split(",")):
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"lane {text!r}: options are KEY=VALUE with commas between, got {option!r}")
        values[key.strip()] = value.strip()
    if name == "local":
        if values:
            raise ValueError(f"the lane local has no options, got {text!r}")
        return name, Local()
    try:
        return name, validated(Slurm, values) if name == "slurm" else validated(Dask, values)
    except ValueError as error:
        raise ValueError(f"lane {name}: {error}") from None


def run_command(command: list[str], values: Mapping[str, str], log: str) -> str:
    """Run a command to its end, with more values in its environment; the last it said, empty where it ended well."""
    done = subprocess.run(command, env=os.environ | dict(values), stdin=subprocess.DEVNULL, check=False)
    return said(done.returncode, Path(log))


class _Unprinted(dict[str, str]):
    """Values that may be secret, and do not appear where their holder is printed."""

    def __repr__(self) -> str:
        return "..."


def _logged(store: Store, run: str) -> list[str]:
    """The command of a run, whose output goes to the run's own log on whichever host it is."""
    return ["sh", "-c", 'exec "$@" >>"$0" 2>&1 </dev/null', str(store.folder(run) / LOG), *command(store, run)]


@contextmanager
def _in_environment(values: Mapping[str, str]) -> Iterator[None]:
    """More values in the environment of this process, which a cluster's client hands on."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _load(library: str) -> Any:
    """A library of the extra `cluster`. Raises: RuntimeError: says how to get it."""
    try:
        return __import__(library)
    except ModuleNotFoundError as error:
        raise RuntimeError(f'{library} is not installed: pip install "flow-map-workbench[cluster]"') from error


def _dask(address: str) -> Any:
    """One client for each cluster; another one where the last has lost it."""
    if address not in _clients or _clients[address].status in ("closing", "closed"):
        _clients[address] = _load("distributed").Client(address, timeout=_REACH_SECONDS)
    return _clients[address]


_clients: dict[str, Any] = {}
