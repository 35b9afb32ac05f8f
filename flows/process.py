"""Commands whose lines are passed on while they run, and of which nothing is left when the one who asked is gone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

GUARD = Path(__file__).with_name("guard.py")
KEPT = 12  # last lines, for the message of a failure
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Finished:
    code: int
    tail: tuple[str, ...]


def run(
    command: list[str],
    *,
    cwd: Path,
    say: Callable[[str], None],
    env: Mapping[str, str] | None = None,
) -> Finished:
    """Each line of its output to ``say`` as it comes."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"} | dict(env or {})
    tail: deque[str] = deque(maxlen=KEPT)
    with subprocess.Popen(
        [sys.executable, "-S", "-E", str(GUARD), *command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.PIPE,  # the guard's leash
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            for raw in process.stdout:
                line = COLOURS.sub("", raw).rstrip()
                if line:
                    tail.append(line)
                    say(line)
        finally:
            process.stdin.close()
    return Finished(process.returncode, tuple(tail))
