"""Generated kernels: their source files, named by content, and the machine code that Numba keeps beside them."""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from gradflow_numba import blas, elementary, jit, native, product, random

FUNCTIONS = ("erf", "exp", "log", "log1p", "ordered", "sigmoid", "tanh", "unordered")


@functools.cache
def folder() -> Path:
    """Where generated sources lie: GRADFLOW_CACHE_DIR, or the user's cache, or a temporary folder."""
    given = os.environ.get("GRADFLOW_CACHE_DIR")
    user = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    first = Path(given) if given else Path(user) / "gradflow"
    for path in (first, Path(tempfile.gettempdir()) / f"gradflow-{_user()}"):
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                return path
        except OSError:
            continue
    return Path(tempfile.mkdtemp(prefix="gradflow-"))


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


@functools.cache
def _support() -> str:
    """A digest of the functions that kernels call: Numba's cache does not look at those."""
    digest = hashlib.sha256()
    for module in (blas, elementary, jit, native, product, random):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


_SCOPE: dict[str, Any] = {
    "np": np,
    **{name: getattr(native, name) for name in ("load", "store", "offset", "word")},
    **native.AT,
    "float64_of": jit.float64_of,
    "plus": jit.plus,
    "ORDER": blas.ROW_MAJOR,
    "PLAIN": blas.PLAIN,
    "FLIP": blas.TRANSPOSED_FROM_PLAIN,
    "sgemm": blas.sgemm,
    "dgemm": blas.dgemm,
    "block": random.block,
    **{f"{name}{bits}": getattr(elementary, f"{name}{bits}") for name in FUNCTIONS for bits in (32, 64)},
}


def source_of(text: str) -> str:
    """The whole source file of a kernel's body."""
    return f"# functions it calls: {_support()}\n\n\ndef kernel(row, t, T):\n{text}\n"


@functools.cache
def compiled(text: str) -> Any:
    """The C function of a kernel's body, from the disk where it was compiled before."""
    source = source_of(text)
    path = folder() / f"kernel_{hashlib.sha256(source.encode()).hexdigest()[:24]}.py"
    if not path.exists():
        _write(path, source)
    scope = {**_SCOPE, **product.TILES, "__name__": native.__name__}
    exec(compile(source, str(path), "exec"), scope)
    return jit.c_function(scope["kernel"], native.SIGNATURE)


def _write(path: Path, source: str) -> None:
    """Write a file as a whole: another process may be looking for it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(source)
    os.replace(temporary, path)
