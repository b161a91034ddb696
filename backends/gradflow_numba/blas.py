"""OpenBLAS from compiled code: NumPy's own copy, called through named symbols, which work from the disk cache too.

Where NumPy bundles no OpenBLAS, SciPy's may be there; where neither is, products are calls of NumPy.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import importlib.util
import os
from collections.abc import Iterator

import llvmlite.binding
import numpy as np
from numba import types

from gradflow_numba.native import POINTERS
from gradflow_numpy.blas import blas_threads

_ORDER, _PLAIN, _TRANSPOSED = 101, 111, 112  # CblasRowMajor, CblasNoTrans, CblasTrans
ROW_MAJOR, TRANSPOSED_FROM_PLAIN = _ORDER, _TRANSPOSED - _PLAIN
PLAIN, TRANSPOSED = _PLAIN, _TRANSPOSED

_GEMM = {"gradflow_sgemm": "cblas_sgemm", "gradflow_dgemm": "cblas_dgemm"}
_COPY = {"gradflow_somatcopy": "cblas_somatcopy", "gradflow_domatcopy": "cblas_domatcopy"}
_THREADS = {"gradflow_set_blas_threads": "openblas_set_num_threads"}


def _libraries() -> Iterator[str]:
    for package, pattern in (("numpy", "libscipy_openblas64_*"), ("scipy", "libscipy_openblas*")):
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            continue
        root = spec.submodule_search_locations[0]
        for folder in (os.path.join(root, "..", f"{package}.libs"), os.path.join(root, ".dylibs")):
            yield from sorted(glob.glob(os.path.join(folder, pattern)))


@functools.cache
def available() -> bool:
    """Whether matrix products can be called from compiled code; looking makes their symbols known to LLVM."""
    for path in _libraries():
        library = ctypes.CDLL(path)
        found = {}
        for name, symbol in {**_GEMM, **_COPY, **_THREADS}.items():
            function = getattr(library, f"scipy_{symbol}64_", None)  # 64-bit integers, as NumPy's copy has them
            if function is not None:
                found[name] = ctypes.cast(function, ctypes.c_void_p).value
        if len(found) == len(_GEMM) + len(_COPY) + len(_THREADS):
            for name, address in found.items():
                llvmlite.binding.add_symbol(name, address)
            note_threads()
            return True
    return False


THREADS = np.ones(1, np.int64)
"""How many threads products outside of compiled programs use: a program puts it back when it is done."""


def note_threads() -> None:
    """Look up how many threads BLAS uses now."""
    THREADS[0] = blas_threads() or 1


_i32, _i64 = types.int32, types.int64


def _gemm(name: str, kind: str) -> types.ExternalFunction:
    p, number = POINTERS[kind], getattr(types, kind)
    arguments = (_i32, _i32, _i32, _i64, _i64, _i64, number, p, _i64, p, _i64, number, p, _i64)
    return types.ExternalFunction(name, types.void(*arguments))


def _omatcopy(name: str, kind: str) -> types.ExternalFunction:
    p, number = POINTERS[kind], getattr(types, kind)
    return types.ExternalFunction(name, types.void(_i32, _i32, _i64, _i64, number, p, _i64, p, _i64))


sgemm, dgemm = _gemm("gradflow_sgemm", "float32"), _gemm("gradflow_dgemm", "float64")
somatcopy, domatcopy = _omatcopy("gradflow_somatcopy", "float32"), _omatcopy("gradflow_domatcopy", "float64")
set_threads = types.ExternalFunction("gradflow_set_blas_threads", types.void(_i32))
