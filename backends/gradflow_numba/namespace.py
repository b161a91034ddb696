"""Numba as a backend: NumPy's arrays, NumPy's kernels, and compiled ones where they are faster."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from gradflow_numba import blas, elementwise, indexing, random, rows, threads, update  # noqa: F401  (they enter their kernels)
from gradflow_numba.kernels import KERNELS, RESIDUAL_KERNELS, VJPS
from gradflow_numpy.blas import set_blas_threads
from gradflow_numpy.namespace import HostBackend


class NumbaBackend(HostBackend):
    """Arrays are ndarrays; matrix products run in the BLAS that NumPy was built with."""

    name = "numba"
    kernels = KERNELS
    residual_kernels = RESIDUAL_KERNELS
    vjps = VJPS

    def versions(self) -> dict[str, str]:
        """Those of Numba, of the compiler below it, and of NumPy."""
        return {"numba": version("numba"), "llvmlite": version("llvmlite"), "numpy": np.__version__}

    def num_threads(self) -> int:
        """The threads of a parallel loop."""
        return threads.available()

    def set_num_threads(self, n: int | None) -> None:
        """Limit the threads of parallel loops and of matrix products."""
        threads.set_limit(n)
        set_blas_threads(n)
        blas.note_threads()

    def code_generator(self) -> Any:
        """One native program a step."""
        from gradflow_numba.compiled import Generator  # the compiler loads when somebody compiles

        return Generator()
