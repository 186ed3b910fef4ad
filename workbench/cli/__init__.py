from collections.abc import Callable

from workbench.cli.bench import bench
from workbench.cli.control import control
from workbench.cli.diff import diff
from workbench.cli.doctor import doctor
from workbench.cli.evaluate import evaluate
from workbench.cli.execute import execute
from workbench.cli.export import export
from workbench.cli.launch import launch
from workbench.cli.notebook import notebook
from workbench.cli.pretrain import pretrain
from workbench.cli.reproduce import reproduce
from workbench.cli.runs import runs_of_the_record
from workbench.cli.sample import sample
from workbench.cli.schedule import schedule
from workbench.cli.serve_reward import serve_reward
from workbench.cli.sweep import sweep
from workbench.cli.train import train

COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "launch": launch,
    "sample": sample,
    "evaluate": evaluate,
    "pretrain": pretrain,
    "notebook": notebook,
    "sweep": sweep,
    "runs": runs_of_the_record,
    "schedule": schedule,
    "execute": execute,
    "reproduce": reproduce,
    "diff": diff,
    "export": export,
    "serve-reward": serve_reward,
    "control": control,
    "bench": bench,
    "doctor": doctor,
}
