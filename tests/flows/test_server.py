"""The deployment as people use it: a real server, a real worker, real runs, real kills."""

import json
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.repository import FLOWS, Repository, make_tiny

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class Server:
    """The server and worker of a checkout, by the commands of the Makefile."""

    def __init__(self, repository: Repository) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.repository, self.url = repository, f"http://127.0.0.1:{port}/api"

    def command(self, *command: str, ok: bool = True) -> str:
        return self.repository.run(*command, ok=ok, env={"PREFECT_API_URL": self.url}).stdout

    def start(self) -> str:
        return self.command("python", "-m", "flows.local", "start")

    def stop(self) -> str:
        return self.command("python", "-m", "flows.local", "stop")

    def ask(self, road: str, **body: object) -> Any:  # noqa: ANN401
        request = urllib.request.Request(  # noqa: S310 - the server of this test
            f"{self.url}/{road}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return json.load(answer)

    def begin(self, **parameters: object) -> str:
        """The name of a run that was asked for."""
        said = self.command("prefect", "deployment", "run", "metadiff/full", "--params", json.dumps(parameters))
        return next(line.split("'")[1] for line in said.splitlines() if line.startswith("Created flow run"))

    def run(self, name: str) -> dict[str, Any]:
        (found,) = self.ask("flow_runs/filter", flow_runs={"name": {"any_": [name]}})
        return dict(found)

    def finish(self, name: str, patience: float = 240) -> dict[str, Any]:
        """Its state when it has one that lasts."""
        wait_for(lambda: self.run(name)["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), patience)
        return dict(self.run(name)["state"])

    def tasks(self, name: str) -> list[dict[str, Any]]:
        return list(self.ask("task_runs/filter", flow_runs={"name": {"any_": [name]}}, sort="EXPECTED_START_TIME_ASC"))

    def logs(self, name: str) -> str:
        found = self.ask("logs/filter", logs={"flow_run_id": {"any_": [self.run(name)["id"]]}}, sort="TIMESTAMP_ASC")
        return "\n".join(line["message"] for line in found)


def wait_for(condition: Callable[[], bool], patience: float) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def processes_in(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    """The same project, run by `dvc repro` and by `dvc exp run`."""
    repository = make_tiny(tmp_path_factory.mktemp("by-hand") / "checkout")
    repository.run("dvc", "repro")
    repository.run("git", "add", "-A")
    repository.run("git", "commit", "-qm", "run")
    repository.run("dvc", "exp", "run", "--name", "fewer", "-S", "evaluate.draws=2")
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(make_tiny(tmp_path_factory.mktemp("served") / "checkout", *FLOWS))
    assert "prefect deployment run metadiff/full" in server.start()
    yield server
    assert server.stop() == "worker: ended\nserver: ended\n"
    assert processes_in(server.repository.root) == []


def test_a_run_gives_the_bytes_of_dvc_repro_and_a_page_that_tells_all(server: Server, by_hand: Repository) -> None:
    checkout = server.repository
    name = server.begin()
    assert server.finish(name)["type"] == "COMPLETED"
    assert [task["name"].rpartition("-")[0] for task in server.tasks(name)] == [
        "prepare",
        "pretrain",
        "collect",
        "metatrain",
        "evaluate",
    ]
    lock = by_hand.run("git", "show", "HEAD:dvc.lock").stdout
    assert checkout.lock() == lock
    assert "evaluate: classifying: 700 episodes in" in server.logs(name)
    checkout.run("git", "add", "-A")
    checkout.run("git", "commit", "-qm", "run")
    told = server.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [server.run(name)["id"]]}})
    pages = {page["key"]: page["data"] for page in told if page["key"]}
    assert pages.keys() == {"results", "changes", "lineage", "curves"}
    assert "| 1 | metadiff |" in pages["results"]
    assert "python -m stages.prepare" in pages["lineage"]
    assert pages["curves"].startswith("![curves](data:image/png;base64,")


def test_two_experiments_at_once_leave_the_checkout_alone(server: Server, by_hand: Repository) -> None:
    checkout = with_results(server)
    before = checkout.run("git", "status", "--porcelain").stdout, checkout.lock()
    runs = [
        server.begin(experiment="fewer", overrides={"evaluate.draws": 2}),
        server.begin(experiment="seeded", overrides={"shared.seed": 3}),
    ]
    assert [server.finish(run)["type"] for run in runs] == ["COMPLETED"] * 2
    assert (checkout.run("git", "status", "--porcelain").stdout, checkout.lock()) == before
    listed = checkout.run("dvc", "exp", "list", "--name-only").stdout.split()
    assert {"fewer", "seeded"} <= {*listed}
    assert not [*(checkout.root / ".dvc/tmp/flows").glob("*/")]
    assert lock_of(checkout, "fewer") == lock_of(by_hand, "fewer")


def with_results(server: Server) -> Repository:
    """The checkout with a committed run, whichever tests came before."""
    checkout = server.repository
    if not (checkout.root / "dvc.lock").exists():
        checkout.run("dvc", "repro")
        checkout.run("git", "add", "-A")
        checkout.run("git", "commit", "-qm", "run")
    return checkout


def lock_of(repository: Repository, experiment: str) -> str:
    commit = repository.run("git", "for-each-ref", "--format=%(objectname)", f"refs/exps/*/*/{experiment}").stdout.strip()
    return repository.run("git", "show", f"{commit}:dvc.lock").stdout


def test_wrong_overrides_are_refused_before_any_stage(server: Server) -> None:
    name = server.begin(overrides={"metatrain.lrr": 1.0, "evaluate.draws": "many"})
    told = server.finish(name)
    assert told["type"] == "FAILED"
    assert "metatrain.lrr: unknown key; did you mean metatrain.lr?" in told["message"]
    assert "evaluate.draws: must be a whole number from 1 to 1000, got the text 'many'" in told["message"]
    assert server.tasks(name) == []
    refused = server.command("prefect", "deployment", "run", "metadiff/full", "--params", '{"gpu": "maybe"}', ok=False)
    assert "'gpu'" in refused


def test_a_failing_stage_shows_the_rows_and_is_not_tried_again(server: Server) -> None:
    """The same image in all classes, and so in two splits: a broken data contract."""
    pictures = server.repository.root / "pictures"
    twins = [folder / "twin.png" for folder in pictures.iterdir()]
    for twin in twins:
        shutil.copy(pictures / "class-00/0.png", twin)
    name = server.begin()
    told = server.finish(name)
    for twin in twins:
        twin.unlink()
    assert told["type"] == "FAILED"
    assert "prepare ended with 65" in told["message"]
    assert "twin.png" in told["message"]
    (task,) = server.tasks(name)
    assert task["run_count"] == 1


def test_a_killed_worker_ends_its_run_within_a_minute_and_the_next_run_goes_on(server: Server) -> None:
    checkout, folder = with_results(server), server.repository.root / ".dvc/tmp/flows/long"
    asked = {"experiment": "long", "overrides": {"pretrain.epochs": 1500}}
    name, log = server.begin(**asked), folder / "data/.work/pretrain/log"
    wait_for(lambda: log.exists() and log.read_text().count(" unit ") >= 3, 120)
    psutil.Process(int((checkout.root / "data/.work/prefect/worker.pid").read_text())).kill()
    assert server.finish(name, 60)["type"] in ("CRASHED", "CANCELLED")
    wait_for(lambda: processes_in(folder) == [], 20)
    done = log.read_text().count(" unit ")
    assert not [*(folder / "data/.work/pretrain").glob("run-*/units/.*.tmp")]  # it ended between two units
    server.start()
    name = server.begin(**asked)
    assert server.finish(name)["type"] == "COMPLETED"
    assert f"{45 * done:,} were done before" in server.logs(name)  # images: 9 of each of the 5 training classes
    assert "pretrain.epochs 1500" in checkout.run("metadiff", "compare").stdout
