"""Loaded by every Python that has this folder on its PYTHONPATH: kills a stage's process tree at an exact file operation.

METADIFF_TEST_KILL="pretrain:rename:2" ends the whole process group of stage pretrain right before its second os.rename.
"""

import os
import signal
import sys
from typing import Any

stage, _, rest = os.environ.get("METADIFF_TEST_KILL", "").partition(":")
if stage and f"stages.{stage}" in sys.orig_argv:
    name, _, count = rest.partition(":")
    real, left = getattr(os, name), [int(count)]

    def deadly(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands in for any function of os
        left[0] -= 1
        if left[0] == 0:
            os.killpg(0, signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(os, name, deadly)
