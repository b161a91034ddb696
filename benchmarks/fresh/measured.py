"""What the programs in this folder share: the clock, the initial weights, and the line that they end with."""

from __future__ import annotations

import json
import resource
import sys
import time
from itertools import pairwise

import numpy as np

LR = 1e-3


def arguments() -> list[int]:
    """The sizes of a network, from the command line."""
    return [int(size) for size in sys.argv[1:]]


def weights(sizes: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each layer a weight (out, in) and a bias, the same in every process."""
    rng = np.random.default_rng(0)
    return [
        (rng.normal(0, np.sqrt(2 / n), (m, n)).astype(np.float32), np.zeros(m, np.float32)) for n, m in pairwise(sizes)
    ]


def batch(sizes: list[int], rows: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Random inputs and classes."""
    rng = np.random.default_rng(1)
    return rng.standard_normal((rows, sizes[0])).astype(np.float32), rng.integers(0, sizes[-1], rows)


def say(**found: float) -> None:
    """Print what was found, the time, and the most memory that this process has had, as one line of JSON."""
    print(json.dumps({**found, "now": time.time(), "peak": peak()}))


def peak() -> int:
    """Bytes of memory at the highest.

    Linux carries `ru_maxrss` over from the process that started this one; its own line in /proc does not.
    """
    try:
        with open("/proc/self/status") as status:
            line = next(line for line in status if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    except (OSError, StopIteration):
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return used if sys.platform == "darwin" else 1024 * used
