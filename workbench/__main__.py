"""The command line: its commands, and what an error becomes. Heavy libraries load inside the commands, so help is instant."""

import sys
from collections.abc import Sequence

import typer

from workbench.cli import COMMANDS

DONE, FAILED, INTERRUPTED = 0, 1, 130  # 2, bad arguments, comes with the error

app = typer.Typer(
    name="workbench",
    help="Reinforcement-learning post-training of few-step flow-map image generators.",
    epilog="Exit status: 0 done, 1 failed, 2 bad arguments, 130 interrupted and resumable.",
    no_args_is_help=True,
    add_completion=False,
)
for _name, _command in COMMANDS.items():
    app.command(_name, context_settings={"allow_interspersed_args": _name != "launch"})(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Every foreseeable error is one line each on stderr and an exit status; the others keep their traceback."""
    command = typer.main.get_command(app)
    try:
        status = command.main(list(arguments or sys.argv[1:]), prog_name="workbench", standalone_mode=False)
    except typer.TyperException as error:
        message = error.format_message().replace("Value error, ", "")
        return _refuse(message + _commands_if(message.startswith("No such command")), error.exit_code)
    except KeyboardInterrupt:
        return _refuse("interrupted", INTERRUPTED)
    except (ValueError, OSError) as error:
        return _refuse(str(error), FAILED)
    except RuntimeError as error:
        from workbench.store import StoreError

        if not isinstance(error, StoreError):
            raise
        return _refuse(str(error), FAILED)
    return status if isinstance(status, int) else DONE


def _commands_if(wanted: bool) -> str:
    return f" Choose from: {', '.join(COMMANDS)}" if wanted else ""


def _refuse(message: str, status: int) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
