"""A Prefect server and a worker for this checkout: `make flow` starts them, `make flow-stop` ends them.

The server (SQLite, on the loopback interface, without telemetry) keeps its state in data/.work/prefect, with a log of each
process. What is there already is used again, so that a second `make flow` only deploys anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from prefect.settings import get_current_settings

ROOT = Path(__file__).resolve().parent.parent
PREFECT = [str(Path(sys.executable).with_name("prefect")), "--no-prompt"]
POOL = "metadiff"
PROCESSES = ("worker", "server")  # in the order in which they end
PATIENCE = 90.0  # seconds
READY = """
Server: {ui}
Run:    prefect deployment run metadiff/full --watch
        prefect deployment run metadiff/full --watch --params '{{"experiment": "lower", "overrides": {{"metatrain.lr": 5e-5}}}}'
        metadiff compare
End:    make flow-stop
(source .venv/bin/activate first)"""


class LocalError(RuntimeError):
    """What keeps server or worker from running, in words."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.local", description="A Prefect server and a worker for this checkout.")
    parser.add_argument("what", choices=("start", "stop"))
    chosen = parser.parse_args(arguments)
    os.chdir(ROOT)
    try:
        start() if chosen.what == "start" else stop()
    except LocalError as error:
        print(f"flow: {error}", file=sys.stderr)
        return 1
    return 0


def start() -> None:
    home().mkdir(parents=True, exist_ok=True)
    url = str(get_current_settings().api.url)
    if running("server") is None and healthy(url):
        raise LocalError(f"another Prefect server answers at {url}; end it, or set PREFECT_API_URL to another port")
    if running("server") is None:
        place = urlsplit(url)
        launch("server", "server", "start", "--host", str(place.hostname), "--port", str(place.port), until=lambda: healthy(url))
    prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
    prefect("deploy", "--all")
    if running("worker") is None:
        begun = datetime.now(UTC)
        launch("worker", "worker", "start", "--pool", POOL, "--name", "local", until=lambda: worker_is_online(url, since=begun))
    print(READY.format(ui=url.removesuffix("/api")))


def stop() -> None:
    for name in PROCESSES:
        pid = running(name)
        if pid is None:
            print(f"{name}: not running")
        else:
            end(pid)
            print(f"{name}: ended")
        pid_file(name).unlink(missing_ok=True)


def home() -> Path:
    return Path(get_current_settings().home).resolve()


def pid_file(name: str) -> Path:
    return home() / f"{name}.pid"


def log_file(name: str) -> Path:
    return home() / f"{name}.log"


def running(name: str) -> int | None:
    """The process that was started as such, if it lives: a number may have gone to another process since."""
    try:
        pid = int(pid_file(name).read_text(encoding="utf-8"))
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return pid if name.encode() in command and b"start" in command else None


def launch(name: str, *arguments: str, until: Callable[[], bool]) -> None:
    """In a session of its own, so that Ctrl-C here is not meant for it; returns when it is ready."""
    environment = os.environ | {"METADIFF_ROOT": str(ROOT), "PYTHONPATH": str(ROOT), "DO_NOT_TRACK": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    with log_file(name).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [*PREFECT, *arguments],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    pid_file(name).write_text(str(process.pid), encoding="utf-8")
    deadline = time.monotonic() + PATIENCE
    while not until():
        if process.poll() is not None or time.monotonic() > deadline:
            last = "\n".join(log_file(name).read_text(encoding="utf-8").splitlines()[-8:])
            raise LocalError(f"the {name} did not start; {log_file(name)} ends with\n{last}")
        time.sleep(0.2)


def prefect(*arguments: str) -> None:
    environment = os.environ | {"METADIFF_ROOT": str(ROOT)}
    done = subprocess.run([*PREFECT, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LocalError(f"prefect {' '.join(arguments)}: {done.stdout.strip()} {done.stderr.strip()}")


def healthy(url: str) -> bool:
    return answer(f"{url}/health") is True


def worker_is_online(url: str, *, since: datetime) -> bool:
    """For a while the server takes a worker that was killed for one that lives."""
    workers = answer(f"{url}/work_pools/{POOL}/workers/filter", {})
    return isinstance(workers, list) and any(datetime.fromisoformat(worker["last_heartbeat_time"]) > since for worker in workers)


def answer(url: str, body: object = None) -> object:
    """What the server says, or None."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310 - our own server
    try:
        with urllib.request.urlopen(request, timeout=5) as response:  # noqa: S310
            return json.load(response)
    except (OSError, ValueError):
        return None


def end(pid: int) -> None:
    """Its whole group, gently at first."""
    for number, patience in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not Path(f"/proc/{pid}").exists():
                return
            time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
