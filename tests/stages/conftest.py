"""What the tests of stages share: a folder to run a stage in, within the test process."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a test; the signal handlers of the test process come back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METADIFF_EXECUTOR", raising=False)
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
