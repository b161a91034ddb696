"""How functions are compiled: the options of every kernel in one place.

`error_model="numpy"` keeps Python's ZeroDivisionError out of divisions, which would stop vectorisation (9 times
slower).
`nnan` and `ninf` are never set: NaN and ∞ are values here. Nor is `arcp`, which has LLVM estimate a reciprocal and
improve it by Newton's step: 1/√0 would be 0 · ∞, a NaN.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numba
from llvmlite import ir
from numba import types
from numba.core.ccallback import CFunc
from numba.extending import intrinsic

F = TypeVar("F", bound=Callable[..., Any])
Number: TypeAlias = Any
"""A float32 or float64 inside a compiled function: Numba infers which, and keeps it."""

SCALAR: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract"},
    "forceinline": True,
    "nogil": True,
}
KERNEL: dict[str, Any] = {
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "reassoc"},  # reassoc lets sums be vectorised: 20 times faster
    "nogil": True,
}


def scalar(function: F) -> F:
    """Compile a function of numbers that LLVM inlines into the loops that call it.

    It keeps its own rounding: LLVM's flags stand on each instruction, so a caller that lets sums be reordered does not
    reorder what is inlined. (Numba's own `inline="always"` would compile the body with the caller's flags.)
    """
    return _compiled(function, SCALAR)


def loop(function: F) -> F:
    """Compile a function of arrays, at its first call for each signature; the machine code is kept on disk."""
    return _compiled(function, KERNEL)


def parallel_loop(function: F) -> F:
    """Compile a function whose `prange` runs on several threads. `threads.available` must have chosen the layer."""
    return _compiled(function, {**KERNEL, "parallel": True})


def _compiled(function: F, options: dict[str, Any]) -> F:
    """The function under njit, its machine code kept on disk where there is a place for it."""
    try:
        made: Any = numba.njit(cache=True, **options)(function)
        _stamp(made)
    except RuntimeError:  # neither NUMBA_CACHE_DIR, nor the package's folder, nor the user's can be written
        made = numba.njit(**options)(function)
    compiled: F = made
    return compiled


def c_function(function: Callable[..., None], signature: Any) -> Any:
    """Compile a function of one signature that is called by its address; the machine code is kept on disk."""
    options = {key: value for key, value in KERNEL.items() if key != "nogil"}  # it holds no lock to give up
    made: Any = CFunc(function, (signature.args, signature.return_type), {}, options)
    with contextlib.suppress(RuntimeError):  # as above
        made.enable_caching()
        _stamp(made)
    made.compile()
    return made


def _stamp(made: Any) -> None:
    """Let machine code on disk be right for as long as `_sources` says."""
    with contextlib.suppress(AttributeError):  # not part of Numba's interface
        made._cache._cache_file._source_stamp = _sources()


@functools.cache
def _sources() -> str:
    """What decides whether machine code on disk is still right: the sources of this package, all of them.

    Numba looks at the file of the function alone, and would keep a kernel whose inlined exp has changed.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _bitcast(source: Any, target: Any) -> Any:
    """The function that reads the bits of a number as another type."""

    def typing(context: Any, x: Any) -> Any:
        def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(target))

        return target(source), generate

    return intrinsic(typing)


bits32 = _bitcast(types.float32, types.int32)
float32_of = _bitcast(types.int32, types.float32)
bits64 = _bitcast(types.float64, types.int64)
float64_of = _bitcast(types.int64, types.float64)
