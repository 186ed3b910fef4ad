"""A private PostgreSQL server from the system's binaries, for tests of a record that a team shares."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from workbench.store import Store


def _binaries() -> Path | None:
    """The folder with initdb and pg_ctl: the newest that Debian installed, or the one on the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which("pg_ctl")
    return Path(found).resolve().parent if found else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL of a server that listens on a socket of its own and goes with the session; its database is `postgres`."""
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="its driver is not installed: pip install flow-map-workbench[postgresql]")
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path must be short
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        user = next(name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()})
        shutil.chown(folder, user)
    data = folder / "data"

    def do(program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(binaries / program), *arguments], user=user, cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{program}: {done.stderr or done.stdout}"

    options = f"-k {folder} -c listen_addresses= -c fsync=off -c full_page_writes=off -c max_connections=60"
    try:
        do("initdb", "-D", str(data), "-U", "workbench", "-A", "trust", "-E", "UTF8", "--no-sync", "--no-instructions")
        do("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
        try:
            yield f"postgresql+psycopg://workbench@/postgres?host={folder}"
        finally:
            do("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgresql_database(postgresql: str) -> str:
    """URL of an empty database."""
    import psycopg

    name = f"record_{uuid4().hex[:12]}"
    with psycopg.connect(postgresql.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgresql.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["sqlite", "postgresql"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store on each kind of database."""
    url = request.getfixturevalue("postgresql_database") if request.param == "postgresql" else None
    store = Store(tmp_path / "runs", url)
    yield store
    store.close()
