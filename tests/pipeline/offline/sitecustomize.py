"""Loaded by every Python that has this folder on its PYTHONPATH: no network, and no orchestrator either."""

import socket
import sys
from typing import Any, NoReturn


def refuse(self: socket.socket, address: Any) -> NoReturn:  # noqa: ANN401
    raise AssertionError(f"a connection to {address} was tried")


socket.socket.connect = refuse  # type: ignore[method-assign]
socket.socket.connect_ex = refuse  # type: ignore[method-assign]
sys.modules["prefect"] = None  # type: ignore[assignment]
