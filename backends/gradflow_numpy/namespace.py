"""NumPy as a backend."""

from __future__ import annotations

from typing import Any, final

import numpy as np
from numpy.lib.array_utils import byte_bounds

from gradflow.backend import Backend, usable_cpus
from gradflow_numpy import layers, random, special, update  # noqa: F401  (they enter their kernels)
from gradflow_numpy.blas import blas_threads, set_blas_threads
from gradflow_numpy.fused import RESIDUAL_KERNELS, VJPS
from gradflow_numpy.kernels import KERNELS


class HostBackend(Backend):
    """What backends share whose arrays are ndarrays."""

    device = "cpu"

    @final
    def asarray(self, obj: Any, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> np.ndarray:
        """An ndarray of the object, in the memory order it has."""
        return np.array(obj, dtype, copy=copy)

    @final
    def to_numpy(self, array: np.ndarray) -> np.ndarray:
        """The array itself."""
        return array

    @final
    def extent(self, array: np.ndarray) -> tuple[np.ndarray, int, int]:
        """The array that owns the memory, and the bytes touched."""
        owner = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        return owner, *byte_bounds(array)

    @final
    def synchronize(self) -> None:
        """An operation returns when it is done."""


class NumpyBackend(HostBackend):
    """Arrays are ndarrays; matrix products run in the BLAS that NumPy was built with."""

    name = "numpy"
    kernels = KERNELS
    residual_kernels = RESIDUAL_KERNELS
    vjps = VJPS

    def versions(self) -> dict[str, str]:
        """NumPy's version."""
        return {"numpy": np.__version__}

    def num_threads(self) -> int:
        """The threads of a matrix product."""
        return blas_threads() or usable_cpus()

    def set_num_threads(self, n: int | None) -> None:
        """Set the threads of a matrix product.

        Raises:
            BackendUnavailableError: NumPy's BLAS cannot be told.
        """
        set_blas_threads(n)

    def code_generator(self) -> Any:
        """Straight-line programs of NumPy calls."""
        from gradflow_numpy.compiled import Generator  # the compiler loads when somebody compiles

        return Generator()
