"""The stages: params in, files out. Importing this package pins the processor's instruction set before torch starts.

Two ordinary x86-64 machines agree on every bit only when they use the same instructions; AVX2 is what they share.
A variable that is already set wins; what holds is written into the manifest of each stage that computes with torch.
"""

import os

PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}
for _name, _value in PINNED.items():
    os.environ.setdefault(_name, _value)
