"""The Numba backend of gradflow: NumPy's arrays, and kernels compiled for this machine where they are faster."""

from __future__ import annotations

import os

from gradflow.backend import Backend, Plugin
from gradflow.errors import ArgumentError, explain

LEAST = (0, 61)
"""The oldest version of Numba that runs it."""


class NumbaPlugin(Plugin):
    """Makes the Numba backend, whose only device is the CPU."""

    name = "numba"
    extra = "numba"

    def unavailable(self) -> str | None:
        """Whether Numba is missing, too old by its metadata (importing it takes 0.3 s), or told not to compile."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("numba")
        except PackageNotFoundError:
            return "Numba is not installed."
        if _release(found) < LEAST:
            return f"Numba {found} is too old: it needs {'.'.join(map(str, LEAST))} or newer."
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            return "NUMBA_DISABLE_JIT is set: nothing would be compiled."
        return None

    def create(self, device: str | None) -> Backend:
        """Make the backend.

        Raises:
            ArgumentError: a device other than the CPU.
        """
        if device not in (None, "cpu"):
            raise ArgumentError(
                explain(
                    f"backend numba has no device {device!r}.",
                    "Numba compiles for the CPU here; GPUs are the backend cupy's.",
                    'backend="numba"',
                )
            )
        from gradflow_numba.namespace import NumbaBackend

        return NumbaBackend()


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version.

    >>> from gradflow_numba import _release
    >>> _release("0.61.0rc1")
    (0, 61)
    """
    return tuple(int(part) for part in version.split(".")[:2])


plugin = NumbaPlugin()
