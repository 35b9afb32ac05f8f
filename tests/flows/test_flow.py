"""What the flow decides by itself: which failures are tried again, and how they are told."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows import full
from flows.process import Finished
from stages.runner import Exit


def state(code: int) -> Any:  # noqa: ANN401
    return SimpleNamespace(data=SimpleNamespace(exception=full.StageError("metatrain", code, ("out of luck",))))


@pytest.mark.parametrize("code", [*Exit, 1, 137])
def test_only_what_can_heal_is_tried_again(code: int) -> None:
    tries = {Exit.BUSY: 4, Exit.MEMORY: 2}.get(code, 1)  # type: ignore[call-overload]
    again = [full.may_heal(None, SimpleNamespace(run_count=count), state(code)) for count in range(1, 6)]
    assert again == [count < tries for count in range(1, 6)]


def test_other_errors_are_not_tried_again() -> None:
    broken = SimpleNamespace(data=SimpleNamespace(exception=KeyError("x")))
    assert not full.may_heal(None, SimpleNamespace(run_count=1), broken)


def test_the_message_has_the_code_and_the_last_lines() -> None:
    assert str(full.StageError("prepare", 65, ("one", "two"))) == "prepare ended with 65\none\ntwo"


@pytest.mark.parametrize(
    ("code", "tail", "found"),
    [
        (255, ("ERROR: failed to reproduce 'prepare': failed to run: python -m stages.prepare, exited with 65",), 65),
        (255, ("ERROR: failed to reproduce 'a': failed to run: python -m stages.a, exited with -9",), -9),
        (255, ("ERROR: Unable to acquire lock. Most likely another DVC process is running",), full.BUSY),
        (1, ("ERROR: '/x/data' is busy, it is being blocked by:",), full.BUSY),
        (255, ("ERROR: something else",), 255),
    ],
)
def test_the_stages_own_code_is_read_from_what_dvc_says(code: int, tail: tuple[str, ...], found: int) -> None:
    assert full.stage_code(Finished(code, tail)) == found
