"""The number of threads of the BLAS that NumPy came with, by the library's own functions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gradflow.backend import usable_cpus
from gradflow.errors import BackendUnavailableError, explain

# How the builds of OpenBLAS name their functions (NumPy's wheels, Linux distributions, 64-bit integers), and MKL.
_NAMES = (
    ("scipy_openblas_get_num_threads64_", "scipy_openblas_set_num_threads64_"),
    ("scipy_openblas_get_num_threads", "scipy_openblas_set_num_threads"),
    ("openblas_get_num_threads64_", "openblas_set_num_threads64_"),
    ("openblas_get_num_threads", "openblas_set_num_threads"),
    ("MKL_Get_Max_Threads", "MKL_Set_Num_Threads"),
)


class _Functions(NamedTuple):
    get: Callable[[], int]
    set: Callable[[int], Any]
    at_first: int


@functools.cache
def _functions() -> _Functions | None:
    """The library's functions; None where there is no such library."""
    import ctypes
    from pathlib import Path

    folder = Path(np.__file__).parent
    # the extension first: looking a name up in it also looks in the libraries that it is linked with
    bundled = [*folder.parent.glob("numpy.libs/*openblas*"), *folder.glob(".dylibs/*openblas*")]
    for path in [*folder.glob("_core/_multiarray_umath*.so"), *bundled]:
        try:
            library = ctypes.CDLL(str(path))
        except OSError:
            continue
        for get, set_ in _NAMES:
            if hasattr(library, get) and hasattr(library, set_):
                found = getattr(library, get)
                return _Functions(found, getattr(library, set_), int(found()))
    return None


def blas_threads() -> int | None:
    """How many threads a matrix product uses; None where the library does not tell."""
    found = _functions()
    return None if found is None else int(found.get())


def set_blas_threads(n: int | None) -> None:
    """Set how many threads a matrix product uses; None sets what it began with.

    Raises:
        BackendUnavailableError: the library has no function for it.
    """
    found = _functions()
    if found is None:
        raise BackendUnavailableError(
            explain(
                f"set_num_threads({n}) finds no function that sets it.",
                "this NumPy came with neither OpenBLAS nor MKL, and other libraries are told when the process starts.",
                "OMP_NUM_THREADS=1 python ...  (or the variable that its BLAS reads)",
            )
        )
    found.set(min(n, usable_cpus()) if n is not None else found.at_first)
