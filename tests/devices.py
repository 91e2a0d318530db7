"""Where the real engines of a test run: the CPU, or a share of a GPU where ATELIER_TEST_GPU names one.

ATELIER_TEST_GPU=0.2 make test ARGS="tests/engines tests/contracts -m real"
"""

from __future__ import annotations

import os

GPU_SHARE = float(os.environ.get("ATELIER_TEST_GPU", "0"))
DEVICE = "cuda" if GPU_SHARE else "cpu"
