"""The dashboard: builds the pages, reads host, port and password, serves. `python app.py --help` lists the options."""

import os
import signal
import socket
import sys
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported; the page works offline

TRASH_SECONDS = 7 * 86_400.0
"""How long a deleted run can be brought back."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(
    host: Annotated[
        str, typer.Option(help="address to listen on; another than this machine's own needs a password")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")] = 7860,
    runs: Annotated[Path, typer.Option(help="folder of the runs")] = Path("runs"),
    store: Annotated[
        str, typer.Option(help="database of the runs as an SQLAlchemy URL; by default SQLite inside the folder")
    ] = "",
    parallel: Annotated[int, typer.Option(min=0, help="queued runs that this app begins at once; 0 leaves them to others")] = 1,
    devices: Annotated[
        str, typer.Option(help="GPUs that queued runs are spread over, as in 0,1; by default each sees them all")
    ] = "",
    auth: Annotated[str, typer.Option(envvar="WORKBENCH_AUTH", help="USER:PASSWORD that visitors must give")] = "",
) -> None:
    """Open the workbench in a browser: start, watch and control runs."""
    user, _, password = auth.partition(":")
    if auth and not (user and password):
        _refuse("--auth must be USER:PASSWORD, with neither of them empty")
    if host not in LOOPBACK and not auth:
        _refuse(
            f"--host {host} would let anyone on the network control this machine; give --auth USER:PASSWORD, or keep 127.0.0.1"
        )
    if not _is_free(host, port):
        _refuse(f"port {port} is in use; port {_free_port(host)} is free: python app.py --port {_free_port(host)}")
    serve(host, port, runs, store or None, (user, password) if auth else None, parallel, tuple(filter(None, devices.split(","))))


def serve(
    host: str,
    port: int,
    runs: Path,
    url: str | None,
    auth: tuple[str, str] | None,
    parallel: int = 1,
    devices: tuple[str, ...] = (),
) -> None:
    """Build the page and serve it until interrupted; runs of this process then have ten seconds to stop with a checkpoint."""
    import gradio as gr

    from workbench.example import welcome
    from workbench.experiments.dispatch import TICK_SECONDS, Dispatcher
    from workbench.experiments.service import Service
    from workbench.jobs import Ticker, Worker
    from workbench.panels import PAGES
    from workbench.panels.page import ASSETS
    from workbench.panels.shell import build
    from workbench.store import Store, StoreError
    from workbench.studio import Studio

    try:
        record = Store(runs, url)
        service = Service(record, Dispatcher(record, slots=parallel, devices=devices)) if parallel else None
        studio = Studio(record, Worker(), service)
        studio.store.purge(older_than=TRASH_SECONDS)
        welcome(studio.store)
    except StoreError as error:
        _refuse(str(error))
    plotly = Path(str(files("plotly") / "package_data" / "plotly.min.js"))
    gr.set_static_paths([ASSETS, plotly])
    with gr.Blocks(title="Flow-Map Workbench", analytics_enabled=False) as page:
        build(studio, PAGES)
    page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        head=_head(ASSETS, plotly),
        footer_links=[],
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    page.allowed_paths = studio.served_folders  # grows as runs are looked at and exported; nothing else is ever served
    ticker = Ticker(service.tick, TICK_SECONDS) if service else None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite end, as by Ctrl-C
    print(f"Flow-Map Workbench is ready: {page.local_url}", flush=True)
    try:
        page.block_thread()
    finally:
        if ticker:
            ticker.close()
        if service:
            service.close()
        studio.makings.close()
        studio.worker.close(timeout=10)


def _head(assets: Path, plotly: Path) -> str:
    """The page's own style, and where the charts' library lies; it is loaded with the first chart."""
    links = [f'<link rel="stylesheet" href="/gradio_api/file={sheet.as_posix()}">' for sheet in sorted(assets.glob("*.css"))]
    return "".join(links) + f'<script>window.workbenchPlotly = "/gradio_api/file={plotly.as_posix()}"</script>'


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex((host if host != "0.0.0.0" else "127.0.0.1", port)) != 0


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _refuse(sentence: str) -> None:
    print(sentence, file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    typer.run(main)
