"""The stages: params in, files out. Importing this package pins the processor's instruction set before torch starts.

Two ordinary x86-64 machines agree on every bit only when they use the same instructions; AVX2 is what they share.
A variable that is already set wins, and what was really used is written into each manifest.
"""

import os

for _name, _value in {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}.items():
    os.environ.setdefault(_name, _value)
