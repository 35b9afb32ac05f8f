"""A command's lines come while it runs, and nothing of it is left, however the one who asked for it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows import process
from stages.imports import ROOT

# A parent, as dvc is, that leaves interrupts to its child, which as a stage finishes its unit, and says so, at the first.
CHILD = """
import pathlib, signal, sys, time
heard = []
def hear(number, _):
    print("finishing the unit at hand", file=sys.stderr)
    heard.append(number)
    pathlib.Path("heard").write_text(str([int(number) for number in heard]))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, hear)
deaf = sys.argv[1:] == ["deaf"]
for number in range(2000):
    pathlib.Path("written").write_text(str(number))
    time.sleep(0.02)
    if heard and not deaf and number % 50 == 49:
        sys.exit(130)
"""
PARENT = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "child.py", *sys.argv[1:]])
signal.signal(signal.SIGINT, signal.SIG_IGN)
child.wait()
"""
CALLER = """
import signal, sys
from pathlib import Path
from flows.process import run
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background, which ignores it
run([sys.executable, "parent.py", *sys.argv[1:]], cwd=Path(), say=print)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "child.py").write_text(CHILD)
    (tmp_path / "parent.py").write_text(PARENT)
    return tmp_path


def start(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    caller = subprocess.Popen([sys.executable, "-c", CALLER, *arguments], cwd=place, env=environment)
    wait_for(lambda: (place / "written").exists())
    return caller


def wait_for(condition: Callable[[], bool], patience: float = 40) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def those_in(place: Path) -> list[psutil.Process]:
    found = []
    for one in psutil.process_iter():
        try:
            if one.status() != psutil.STATUS_ZOMBIE and Path(one.cwd()) == place and one.pid != os.getpid():
                found.append(one)
        except (psutil.Error, OSError):
            continue
    return found


def test_lines_come_one_by_one_without_colours_and_the_last_are_kept(tmp_path: Path) -> None:
    code = "import sys, time\n"
    code += "for i in range(20): print(f'\\x1b[31mline {i}\\x1b[0m', flush=True); time.sleep(0.02)\n"
    code += "print(file=sys.stderr); sys.exit(65)"
    times: list[float] = []
    heard: list[str] = []

    def say(line: str) -> None:
        times.append(time.monotonic())
        heard.append(line)

    done = process.run([sys.executable, "-c", code], cwd=tmp_path, say=say)
    assert heard == [f"line {i}" for i in range(20)]
    assert times[-1] - times[0] > 0.2
    assert (done.code, done.tail) == (65, tuple(heard[-process.KEPT :]))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left_when_the_caller_ends(place: Path, number: signal.Signals) -> None:
    caller = start(place)
    caller.send_signal(number)
    caller.wait(timeout=30)
    wait_for(lambda: not those_in(place))
    assert (place / "heard").read_text() == "[2]"  # once, or a stage would drop its unit
    assert int((place / "written").read_text()) % 50 == 49


def test_the_child_of_a_killed_command_does_not_live_on(place: Path) -> None:
    caller = start(place)
    (parent,) = [one for one in those_in(place) if one.cmdline()[1:] == ["parent.py"]]
    parent.kill()
    caller.wait(timeout=30)
    assert those_in(place) == []
    assert int((place / "written").read_text()) % 50 == 49


@pytest.mark.slow
def test_who_does_not_listen_is_made_to_end(place: Path) -> None:
    caller = start(place, "deaf")
    caller.kill()
    caller.wait(timeout=30)
    wait_for(lambda: not those_in(place))
