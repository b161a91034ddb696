"""The NumPy backend of gradflow: runs everywhere and needs nothing more than NumPy."""

from __future__ import annotations

from gradflow.backend import Backend, Plugin
from gradflow.errors import ArgumentError, explain


class NumpyPlugin(Plugin):
    """Makes the NumPy backend, whose only device is the CPU."""

    name = "numpy"
    extra = None

    def unavailable(self) -> str | None:
        """NumPy is a dependency of gradflow: always usable."""
        return None

    def create(self, device: str | None) -> Backend:
        """Make the backend.

        Raises:
            ArgumentError: a device other than the CPU.
        """
        if device not in (None, "cpu"):
            raise ArgumentError(
                explain(f"backend numpy has no device {device!r}.", "NumPy computes on the CPU.", 'backend="numpy"')
            )
        from gradflow_numpy.namespace import NumpyBackend

        return NumpyBackend()


plugin = NumpyPlugin()
