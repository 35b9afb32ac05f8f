"""Loaded by every Python that has this folder on its PYTHONPATH: no network, and no orchestrator either."""

import os
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn


def refuse(self: socket.socket, address: Any) -> NoReturn:  # noqa: ANN401
    with Path(os.environ["METADIFF_TEST_CONNECTIONS"]).open("a") as file:  # who tries may swallow the error
        file.write(f"{sys.orig_argv}: {address}\n")
    raise OSError(f"a connection to {address} was tried")


socket.socket.connect = refuse  # type: ignore[method-assign]
socket.socket.connect_ex = refuse  # type: ignore[method-assign]
sys.modules["prefect"] = None  # type: ignore[assignment]
