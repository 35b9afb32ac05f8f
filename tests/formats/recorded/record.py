"""Prints one small data set as the pickles of this interpreter, old ones too; its output is what the files beside it hold.

``python2.7 record.py > python2.json`` with numpy 1.16, ``python3.8 record.py > python3.json`` with numpy 1.19.
"""

import base64
import json
import pickle
import sys

import numpy as np

try:
    import cPickle as fast  # noqa: N813 - its only name
except ImportError:
    fast = None

TEXT = type("".encode("ascii").decode("ascii"))

SAMPLE = {
    "data": (np.arange(2 * 4 * 4 * 3) * 5 % 251).astype(np.uint8).reshape(2, 4, 4, 3),
    "labels": [64, 65],
    "catname2label": {"n01855672": 64},
    "label2catname": {64: "n01855672"},
    "label_specific": np.array([0, 1], dtype=np.int32),
    "label_specific_str": [TEXT("crane"), TEXT("ma\\u00eetre").encode("ascii").decode("unicode_escape")],
    "numbers": (None, True, False, 0, 255, 65535, 2**31 - 1, -1, 2**40, 0.5, ()),
    "scalar": np.int64(7),
    "fortran": np.asfortranarray(np.array([[1, 2], [3, 4]], dtype=np.uint8)),
    "buffers": [np.array([137, 80, 78, 71], dtype=np.uint8), np.array([[137], [80]], dtype=np.uint8)],
}


def recordings():  # noqa: ANN201 - Python 2 has no annotations
    modules = [pickle] if fast is None else [pickle, fast]
    for module in modules:
        for protocol in range(module.HIGHEST_PROTOCOL + 1):
            name = "python {}.{} {} {}".format(sys.version_info[0], sys.version_info[1], module.__name__, protocol)  # noqa: UP032
            yield name, base64.b64encode(module.dumps(SAMPLE, protocol)).decode("ascii")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(dict(recordings()), indent=1, sort_keys=True, separators=(",", ": ")) + "\n")
