"""Reads every file of a folder as carelessly as can be, each in a process of its own, and prints what became of it.

``python naive.py FOLDER``: JSON of name -> "read", the name of an exception, or "signal N". The limits keep the machine alive.
"""

import json
import os
import pickle
import resource
import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

ADDRESSES = 1 << 30
SECONDS = 1


def read(path: Path) -> None:
    if path.suffix == ".npz":
        loaded = np.load(path, allow_pickle=True)
        loaded = loaded["images"] if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    elif path.suffix == ".png":
        Image.MAX_IMAGE_PIXELS = None
        loaded = Image.open(path)
        loaded.load()
    else:
        with path.open("rb") as stream:
            loaded = pickle.load(stream, encoding="latin1")  # noqa: S301 - the harm is meant
    repr(loaded)


def outcome(path: Path) -> str:
    told, tells = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        try:
            read(path)
            os.write(tells, b"read")
        except BaseException as error:
            os.write(tells, type(error).__name__.encode())
        os._exit(0)
    os.close(tells)
    with open(told) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.stdout.write(json.dumps({path.name: outcome(path) for path in sorted(Path(sys.argv[1]).iterdir())}))
