"""Runs a command that must not outlive the one who asked for it: `python guard.py COMMAND...`, with a pipe as standard input.

The kernel closes the pipe however its other end dies, `kill -9` included. Then, or when it is closed on purpose, the whole
process group is interrupted, once and as by Ctrl-C, and after GRACE seconds made to end. What the command says goes through here,
so that it may go on speaking while it ends, when nobody listens any more. Of the standard library alone: it starts at once.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from typing import IO

GRACE = 15.0  # a stage ends between two units of its work


class Guard:
    def __init__(self, command: list[str]) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)  # they are for the group; this process stays to see it end
        self._asked = threading.Lock()  # whoever holds it is the one to end the group
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self._process: subprocess.Popen[bytes] = subprocess.Popen(command, **streams)  # type: ignore[call-overload]
        assert self._process.stdout
        self._relay = threading.Thread(target=_relay, args=(self._process.stdout,), daemon=True)
        self._leash = threading.Thread(target=self._end_with_the_pipe, daemon=True)

    def run(self) -> int:
        self._relay.start()
        self._leash.start()
        code = self._process.wait()
        if self._asked.acquire(blocking=False):
            end_the_group(GRACE if code < 0 else 0.0)  # what a killed command leaves behind is its orphans
        else:
            self._leash.join()
        self._relay.join(timeout=5)
        return code if code >= 0 else 128 - code

    def _end_with_the_pipe(self) -> None:
        while os.read(0, 4096):
            pass
        if self._asked.acquire(blocking=False):
            end_the_group(GRACE)


def _relay(output: IO[bytes]) -> None:
    heard = True
    for line in output:
        try:
            if heard:
                os.write(1, line)
        except OSError:
            heard = False


def end_the_group(grace: float) -> None:
    deadline = time.monotonic() + grace
    for pid in others():
        send(pid, signal.SIGINT)
    while others() and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in others():
        send(pid, signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def others() -> list[int]:
    """The living processes of this group but for this one."""
    own, found = os.getpgrp(), []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8") as file:
                state, _, group = file.read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == own and int(name) != os.getpid() and state not in "ZX":
            found.append(int(name))
    return found


if __name__ == "__main__":
    sys.exit(Guard(sys.argv[1:]).run())
