"""NumPy as a backend."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from gradflow.backend import Backend, usable_cpus
from gradflow_numpy import layers, random, special, update  # noqa: F401  (they enter their kernels)
from gradflow_numpy.fused import RESIDUAL_KERNELS, VJPS
from gradflow_numpy.kernels import KERNELS


class NumpyBackend(Backend):
    """Arrays are ndarrays; matrix products run in the BLAS that NumPy was built with."""

    name = "numpy"
    device = "cpu"
    kernels = KERNELS
    residual_kernels = RESIDUAL_KERNELS
    vjps = VJPS

    def asarray(self, obj: Any, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> np.ndarray:
        """An ndarray of the object, in the memory order it has."""
        return np.array(obj, dtype, copy=copy)

    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """The array itself."""
        return array

    def extent(self, array: np.ndarray) -> tuple[np.ndarray, int, int]:
        """The array that owns the memory, and the bytes touched."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        return owner, *byte_bounds(array)

    def synchronize(self) -> None:
        """NumPy computes at once."""

    def versions(self) -> dict[str, str]:
        """NumPy's version."""
        return {"numpy": np.__version__}

    def num_threads(self) -> int:
        """The threads of a matrix product: the usable CPUs, or fewer by OPENBLAS_NUM_THREADS or OMP_NUM_THREADS."""
        for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
            text = os.environ.get(variable, "")
            if text.isdigit() and int(text) > 0:
                return min(int(text), usable_cpus())
        return usable_cpus()
