"""`serve-reward`: work out a reward here for training that goes on elsewhere."""

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from workbench.cli.options import BadArguments, Changes, Json, Runs, StoreUrl, bad_arguments, read_changes
from workbench.cli.screen import say, show, show_json
from workbench.first_line import first_line

if TYPE_CHECKING:
    import torch

TOKEN = "WORKBENCH_REWARD_TOKEN"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_reward(
    name: Annotated[str, typer.Argument(help="reward to serve")],
    changes: Changes = None,
    host: Annotated[
        str, typer.Option(help=f"address to listen on; another than this machine's own needs a token in ${TOKEN}")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port to listen on; 0 takes one that is free")] = 8400,
    device: Annotated[str, typer.Option(help="where it computes: auto, cpu, mps, cuda or cuda:1")] = "auto",
    runs: Runs = "runs",
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Serve a reward over HTTP until interrupted; a run asks for it with the reward `remote`. It leaves no run in the record.

    One server for each GPU: a run shares its pictures out among all addresses that it is given.
    """
    from workbench.rewards.asking import PLAIN_HOSTS, key_in

    with bad_arguments():
        token = key_in(TOKEN)
    if host not in _LOOPBACK and not token:
        told = f"--host {host} would let anyone on the network use this machine"
        raise BadArguments(
            f"{told}; put a token into ${TOKEN}, here and where the run is, which lists this host in ${PLAIN_HOSTS}; or keep "
            "127.0.0.1"
        )
    from workbench.config import configure_reward
    from workbench.reward_server import listen, make_app, serve

    with bad_arguments():
        reward = configure_reward(name, read_changes(changes, example="quality=90"))
        where = _device(device)
    listening = listen(host, port)
    say(f"loading {name}")
    try:
        app = make_app(reward, where, token)
    except ModuleNotFoundError as error:  # says what to install
        raise ValueError(str(error)) from error
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    ready = {"reward": name, "address": address, "device": str(where), "token": bool(token)}
    show_json(ready) if as_json else show(f"serving {name} at {address} on {where}; Ctrl-C ends it")
    with suppress(KeyboardInterrupt):
        serve(app, listening)


def _device(name: str) -> "torch.device":
    """Raises: ValueError: if there is no such device here."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if accelerator is None else torch.device(accelerator.type)
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} is not here: {first_line(error)}") from error
    return torch.device(name)
