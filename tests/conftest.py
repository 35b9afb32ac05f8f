"""What all tests share: no telemetry, and the project's own python first on the PATH."""

import os
import sys
from pathlib import Path

import pytest

os.environ |= {"DO_NOT_TRACK": "1", "DVC_NO_ANALYTICS": "1", "GX_ANALYTICS_ENABLED": "false", "DVC_STUDIO_OFFLINE": "true"}
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


from tests.repository import copy, finished, tiny

__all__ = ["copy", "finished", "one_torch_thread", "tiny"]


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Tests run beside each other on two cores: one thread each, unless a test asks for more."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
