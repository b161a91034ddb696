"""Parsed settings: environment variables and the default floating-point dtype."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from gradflow import structure
from gradflow.errors import ArgumentError, DTypeError, explain

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off", ""})

_default_dtype: np.dtype[Any] = np.dtype(np.float32)


def env_text(name: str) -> str | None:
    """Read environment variable ``name``, stripped of blanks; None if it is unset or empty.

    >>> from gradflow.config import env_text
    >>> env_text("GRADFLOW_NO_SUCH_SETTING") is None
    True
    """
    return os.environ.get(name, "").strip() or None


def env_flag(name: str, default: bool) -> bool:
    """Read environment variable ``name`` as a boolean; ``default`` if it is unset.

    ``1/true/yes/on`` are true, ``0/false/no/off`` and the empty text are false, in any case and with blanks around.

    Raises:
        ArgumentError: any other text; a misspelt switch must not be read as its opposite.

    >>> from gradflow.config import env_flag
    >>> env_flag("GRADFLOW_NO_SUCH_FLAG", default=True)
    True
    """
    value = os.environ.get(name)
    if value is None:
        return default
    word = value.strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ArgumentError(
        explain(
            f"environment variable {name}={value!r} is not a boolean.",
            "it is 1/true/yes/on or 0/false/no/off (or empty), in any case.",
            f"export {name}={int(default)}",
        )
    )


def get_default_dtype() -> np.dtype[Any]:
    """Return the dtype that Python numbers and lists of them become: float32 until `set_default_dtype` changes it.

    >>> gf.get_default_dtype()
    dtype('float32')
    """
    return _default_dtype


def set_default_dtype(dtype: Any) -> None:
    """Set the dtype that Python numbers and lists of them become, in the whole process.

    Args:
        dtype: float32 or float64, as a dtype, a NumPy type or a name.

    Raises:
        DTypeError: any other dtype.

    >>> gf.set_default_dtype("float64")
    >>> gf.get_default_dtype()
    dtype('float64')
    >>> gf.set_default_dtype(gf.float32)
    """
    global _default_dtype
    try:
        wanted: np.dtype[Any] | None = None if dtype is None else np.dtype(dtype)  # NumPy reads None as float64
    except (TypeError, ValueError):
        wanted = None
    if wanted != np.float32 and wanted != np.float64:
        raise DTypeError(
            explain(
                f"{dtype!r} cannot be the default dtype.",
                "Python numbers become float32 or float64, in the machine's byte order.",
                "gf.set_default_dtype(gf.float64)",
            )
        )
    assert wanted is not None
    _default_dtype = wanted
    structure.changed()
