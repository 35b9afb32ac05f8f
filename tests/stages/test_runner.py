"""The contract of a stage, on a stage of a few lines: exit codes, resume, signals, locks, no side effects."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metadiff.artifact import file_sha256, listed, read_manifest, record, verify, write_json
from metadiff.errors import CorruptArtifactError, DataError, NumericError, ParamsError
from metadiff.params import Evaluate, load
from stages import PINNED
from stages.imports import ROOT
from stages.progress import every
from stages.runner import Exit, Run, Stage, _guarded, log_row

PROGRAM = """
import sys, time
from pathlib import Path
from stages.runner import Stage, main

def build(run):
    with run.progress("counting", total=6, unit="units") as advance:
        for i in range(6):
            if not run.finished_unit(f"u{i}"):
                with run.unit(f"u{i}") as folder:
                    time.sleep(float(sys.argv[1]))
                    (folder / "x").write_text(str(i))
            advance(1)
    (run.out / "sum").write_text("".join((run.finished_unit(f"u{i}") / "x").read_text() for i in range(6)))

main(Stage(name="evaluate", out=Path("data/results"), build=build))
"""


@pytest.fixture
def checkout(workplace: Path) -> Path:
    """A folder with params.yaml to run stages in."""
    (workplace / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (workplace / "program.py").write_text(PROGRAM)
    return workplace


def run(build: Callable[[Run], None], **facts: object) -> Exit:
    return _guarded(Stage(name="evaluate", out=Path("data/results"), build=build, lower="evaluate.query", **facts))


def start(checkout: Path, pause: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "program.py", str(pause)]
    return subprocess.Popen(command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finish(checkout: Path) -> int:
    """Run the program to its end, without pauses."""
    process = start(checkout, 0)
    process.communicate(timeout=60)
    return process.returncode


def wait_for_units(checkout: Path, count: int) -> None:
    log, deadline = checkout / "data/.work/evaluate/log", time.monotonic() + 30
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().count(" unit ") >= count:
            return
        time.sleep(0.02)
    raise TimeoutError(f"{count} units")


def units_done(checkout: Path) -> list[str]:
    return [line.split()[-1] for line in (checkout / "data/.work/evaluate/log").read_text().splitlines() if " unit " in line]


def writes_one_file(run: Run) -> None:
    (run.out / "x").write_text("1")


def test_a_run_publishes_a_sealed_result_once_and_for_all(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(writes_one_file) is Exit.OK
    verify(checkout / "data/results")

    def never(_: Run) -> None:
        raise AssertionError("built again")

    assert run(never) is Exit.OK
    assert "finished before with these params, inputs and code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("oak: have 3 images, need 20"), 65, "evaluate: oak: have 3 images, need 20"),
        (CorruptArtifactError("images.h5: changed"), 65, "evaluate: images.h5: changed"),
        (NumericError("step 7: loss nan"), 70, "evaluate: step 7: loss nan"),
        (MemoryError("cannot"), 71, "evaluate: out of memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            71,
            "evaluate: out of memory",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/big"), 74, "/big'; nothing was published. Free some space"),
    ],
)
def test_each_kind_of_failure_has_its_exit_code_and_one_line(
    checkout: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: int, words: str
) -> None:
    def build(_: Run) -> None:
        raise error

    assert run(build) == code
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1
    assert not (checkout / "data/results").exists()


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("bug"), OSError(errno.EIO, "bug")])
def test_a_bug_is_a_traceback_not_an_exit_code(checkout: Path, error: Exception) -> None:
    def build(_: Run) -> None:
        raise error

    with pytest.raises(type(error)):
        run(build)


def test_wrong_params_touch_nothing(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(text.replace("way: 5", "way: five"))
    assert run(writes_one_file) is Exit.PARAMS
    assert "evaluate.way" in capsys.readouterr().err
    assert not (checkout / "data").exists()


def test_cuda_that_is_not_there_is_said(
    checkout: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(text.replace("device: cpu", "device: cuda"))
    assert run(writes_one_file, shared=("threads", "device", "deterministic")) is Exit.PARAMS
    assert "shared.device: cuda is asked for" in capsys.readouterr().err


def test_a_stage_sees_only_what_it_declares(checkout: Path) -> None:
    def build(run: Run) -> None:
        assert type(run.params) is Evaluate
        with pytest.raises(AssertionError, match=r"does not declare that it uses shared\.seed"):
            _ = run.seed
        assert run.device == "cpu"
        writes_one_file(run)

    assert run(build, shared=("threads", "device", "deterministic")) is Exit.OK


@pytest.mark.parametrize("change", ["params", "shared", "input", "raw", "nothing"])
def test_work_is_kept_for_exactly_these_params_inputs_and_versions(checkout: Path, change: str) -> None:
    text = (checkout / "params.yaml").read_text()
    facts = {"inputs": (Path("in"),), "raw": lambda _: Path("raw"), "shared": ("threads", "device", "deterministic")}
    (checkout / "raw").mkdir()
    (checkout / "raw" / "a.png").write_text("a")

    def give_input(content: str) -> None:
        from metadiff.artifact import seal

        (checkout / "in").mkdir(exist_ok=True)
        (checkout / "in" / "x").write_text(content)
        (checkout / "in" / "manifest.json").unlink(missing_ok=True)
        seal(checkout / "in")

    give_input("1")
    built = []
    assert run(lambda r: (built.append(1), writes_one_file(r)), **facts) is Exit.OK  # type: ignore[func-returns-value]
    if change == "params":
        (checkout / "params.yaml").write_text(text.replace("episodes: 2000", "episodes: 1999"))
    if change == "shared":
        (checkout / "params.yaml").write_text(text.replace("threads: 2", "threads: 1"))
    if change == "input":
        give_input("2")
    if change == "raw":
        (checkout / "raw" / "b.png").write_text("b")
    if change == "nothing":
        (checkout / "params.yaml").write_text("# a comment\n" + text.replace("seed: 0  ", "seed:  0  "))
    assert run(lambda r: (built.append(2), writes_one_file(r)), **facts) is Exit.OK  # type: ignore[func-returns-value]
    assert built == ([1] if change == "nothing" else [1, 2])


def test_a_changed_input_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _guarded(Stage(name="prepare", out=Path("data/prepared"), build=writes_one_file)) is Exit.OK
    (checkout / "data/prepared/x").write_text("2")
    assert run(writes_one_file, inputs=(Path("data/prepared"),)) is Exit.DATA
    assert "data/prepared/x: changed since it was made" in capsys.readouterr().err


def test_a_disk_too_small_is_refused_before_the_work(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda r: r.reserve(10**18)) is Exit.DISK
    assert "about 1,000,000,000,000 MB are needed" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_after_the_unit_at_hand_and_the_next_run_goes_on(checkout: Path, number: int, code: int) -> None:
    process = start(checkout, 0.3)
    wait_for_units(checkout, 2)
    process.send_signal(number)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == code
    assert "finishing the unit at hand first" in printed
    assert "the next run goes on from here" in printed
    before = units_done(checkout)
    assert 2 < len(before) + 1 <= 6
    assert finish(checkout) == 0
    assert units_done(checkout) == [f"u{i}" for i in range(6)]
    assert (checkout / "data/results/sum").read_text() == "012345"


def test_a_second_signal_ends_at_once(checkout: Path) -> None:
    process = start(checkout, 60)
    while not list((checkout / "data/.work").glob("evaluate/run-*/units/.u0.tmp")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "stopped at once" in printed


def test_a_signal_where_there_is_no_unit_publishes_nothing_and_loses_nothing(checkout: Path) -> None:
    def build(run: Run) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        writes_one_file(run)

    assert run(build) is Exit.TERMINATED
    assert not (checkout / "data/results").exists()

    def never(_: Run) -> None:
        raise AssertionError("built again")

    assert run(never) is Exit.OK
    verify(checkout / "data/results")


def test_a_second_signal_is_no_reason_to_call_an_image_bad(checkout: Path) -> None:
    """Whatever a decoder catches, it is not the wish of the user to stop."""
    from PIL import Image

    from metadiff.images.decode import decode_file

    Image.new("L", (20, 20), 7).save(checkout / "a.png")

    def interrupted_twice(_: Image.Image) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    def decode(run: Run) -> None:
        with pytest.MonkeyPatch.context() as patch, run.unit("block") as folder:
            patch.setattr("metadiff.images.decode._refuse_tiny", interrupted_twice)
            decode_file(checkout / "a.png", root=checkout, image_size=8, color="gray")
            (folder / "x").write_text("never")

    assert run(decode) is Exit.INTERRUPTED
    assert not list((checkout / "data/.work").glob("evaluate/run-*/units/block"))


def test_inputs_that_change_under_a_run_give_no_result(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "raw").mkdir()
    (checkout / "raw" / "a.png").write_text("a")

    def build(run: Run) -> None:
        with run.unit("block"):
            (checkout / "raw" / "a.png").write_text("b")
        writes_one_file(run)

    assert run(build, raw=lambda _: Path("raw")) is Exit.DATA
    assert "changed while it ran" in capsys.readouterr().err
    assert not (checkout / "data/results").exists()
    assert not list((checkout / "data/.work").glob("evaluate/run-*"))


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    process = start(checkout, 0.2)
    wait_for_units(checkout, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert finish(checkout) == 0
    assert units_done(checkout) == [f"u{i}" for i in range(6)]
    other = tmp_path_factory.mktemp("undisturbed")
    for name in ("params.yaml", "program.py"):
        (other / name).write_text((checkout / name).read_text())
    assert finish(other) == 0
    assert verify(checkout / "data/results") == verify(other / "data/results")


def test_two_at_once_are_never_two_writers(checkout: Path) -> None:
    first = start(checkout, 0.3)
    wait_for_units(checkout, 1)
    second = start(checkout, 0)
    _, printed = second.communicate(timeout=30)
    assert second.returncode == Exit.BUSY
    assert f"evaluate: busy: process {first.pid} on " in printed
    assert f"kill {first.pid}" in printed
    first.communicate(timeout=30)
    assert first.returncode == 0


def test_live_curves_are_those_of_an_undisturbed_run_and_touch_nothing_else(checkout: Path) -> None:
    rows = [{"train/loss": 2.0 / (step + 1), "val/accuracy": step * 1.5} for step in range(4)]

    def undisturbed(run: Run) -> None:
        live = run.live([])
        for row in rows:
            log_row(live, row)

    def resumed(run: Run) -> None:
        live = run.live(rows[:2])
        for row in rows[2:]:
            log_row(live, row)

    for command in ("git init -q .", "dvc init -q", "git -c user.name=a -c user.email=a@b commit -qm first"):
        subprocess.run(command.split(), check=True)
    (checkout / "dvc.yaml").write_text("stages: {}\n")
    before = {path.name for path in checkout.iterdir()} | {"data"}
    assert _guarded(Stage(name="evaluate", out=Path("data/results"), build=undisturbed)) is Exit.OK
    assert _guarded(Stage(name="pretrain", out=Path("data/backbone"), build=resumed)) is Exit.OK
    assert listed(checkout / "data/results") == listed(checkout / "data/backbone")
    assert (checkout / "data/results/curves/plots/metrics/train/loss.tsv").read_text().splitlines()[1] == "0\t2.0"
    assert {path.name for path in checkout.iterdir()} == before
    assert (checkout / "dvc.yaml").read_text() == "stages: {}\n"
    assert subprocess.run(["dvc", "exp", "list", "--name-only"], check=True, capture_output=True).stdout == b""


def test_made_with_names_what_the_promise_of_equal_bytes_holds_for(checkout: Path) -> None:
    assert run(writes_one_file, versions=("numpy",), shared=("threads", "device", "deterministic")) is Exit.OK
    made = json.loads((checkout / "data/results/manifest.json").read_text())["made_with"]
    assert made.keys() == {"numpy", "torch", "machine", "instructions", "threads", "device", *PINNED}


def test_the_manifest_and_the_lineage_say_where_a_result_is_from(checkout: Path) -> None:
    def build(run: Run[Evaluate]) -> None:
        writes_one_file(run)
        write_json(run.out / "lineage.json", run.lineage())

    assert run(build, shared=("seed",)) is Exit.OK
    manifest = read_manifest(checkout / "data/results")
    (own,) = json.loads((checkout / "data/results/lineage.json").read_bytes())["stages"].values()
    assert own["command"] == "python -m stages.evaluate"
    assert own["params"] == load("params.yaml").evaluate.model_dump(mode="json")
    assert own["shared"] == {"seed": load("params.yaml").shared.seed}
    assert own["code"]["stages/evaluate.py"] == file_sha256(ROOT / "stages/evaluate.py")
    assert manifest["chain"] == {}
    del manifest["files"]["lineage.json"]  # which cannot tell of itself
    assert own == record(manifest)


@pytest.mark.parametrize(("asked", "lines"), [("", 0), ("0.2", 4), ("9", 0)])
def test_progress_is_said_in_lines_where_it_is_asked_for(asked: str, lines: int) -> None:
    code = "import time; from stages.progress import progress\n"
    code += "with progress('training', total=8, done=4, unit='steps') as advance:\n"
    code += " for _ in range(4): time.sleep(.25); advance(1)"
    environment = os.environ | ({"METADIFF_PROGRESS": asked} if asked else {})
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env=environment).stderr.splitlines()
    assert len(said) == 1 + lines
    if lines:
        assert re.fullmatch(r"training: 5 of 8 steps \([34](\.\d)?/s\), 1 s left", said[0])


def test_nonsense_for_progress_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METADIFF_PROGRESS", "often")
    with pytest.raises(ParamsError, match="METADIFF_PROGRESS: must be a number of seconds, got 'often'"):
        every()


def test_the_instruction_set_is_pinned_before_torch_starts() -> None:
    code = "import stages, torch; print(torch.backends.cpu.get_cpu_capability())"
    clean = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=clean)
    assert run.stdout == "AVX2\n"
