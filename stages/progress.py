"""A progress bar with rate and time left on a terminal, and one closing line everywhere.

Where others read along, METADIFF_PROGRESS=10 says it in a line every ten seconds.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from metadiff.errors import ParamsError


class Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(per_second(task.speed) if task.speed else "", style="progress.data.speed")


def per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


VARIABLE = "METADIFF_PROGRESS"


def every() -> float:
    """The seconds between two lines."""
    asked = os.environ.get(VARIABLE, "inf")
    try:
        return float(asked)
    except ValueError:
        raise ParamsError(f"{VARIABLE}: must be a number of seconds, got {asked!r}") from None


@contextmanager
def progress(what: str, *, total: int, done: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Yields ``advance(n)``; ``done`` is what an earlier run had finished, so that rate and time left speak of this one."""
    console = Console(stderr=True)
    counts = (MofNCompleteColumn(), TextColumn(unit), Rate(), TimeRemainingColumn())
    start, ours = time.monotonic(), 0
    quiet, next_line = not console.is_terminal, start + every()
    with Progress(TextColumn("{task.description}"), BarColumn(), *counts, console=console, disable=quiet, transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)

        def advance(count: int) -> None:
            nonlocal ours, next_line
            ours += count
            bar.advance(task, count)
            now = time.monotonic()
            if quiet and now >= next_line:
                next_line = now + every()
                rate = ours / (now - start)
                left = (total - done - ours) / rate
                said = f"{done + ours:,} of {total:,} {unit} ({per_second(rate)}), {left:.0f} s left"
                print(f"{what}: {said}", file=sys.stderr, flush=True)

        yield advance
    seconds = time.monotonic() - start
    resumed = f", {done:,} were done before" if done else ""
    print(f"{what}: {ours:,} {unit} in {seconds:.1f} s ({per_second(ours / max(seconds, 1e-9))}){resumed}", file=sys.stderr)
