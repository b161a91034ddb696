"""A backend to hold another against: the same arrays, computed by compositions and generic rules alone."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from gradflow.backend import Array, Backend, resolve
from gradflow.primitive import REGISTRY

if TYPE_CHECKING:
    import numpy as np


class _WithoutKernels(Backend):
    """Delegates to a backend, and offers of its kernels those alone that nothing can be composed from."""

    def __init__(self, backend: Backend) -> None:
        self.name = "rules-only"
        self.device = backend.device
        self.kernels = {
            name: kernel
            for name, kernel in backend.kernels.items()
            if name not in REGISTRY or REGISTRY[name].impl is None
        }
        self.residual_kernels = {}
        self.vjps = {}
        self._backend = backend

    def asarray(self, obj: Any, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        return self._backend.asarray(obj, dtype, copy)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return self._backend.to_numpy(array)

    def extent(self, array: Array) -> tuple[Any, int, int]:
        return self._backend.extent(array)

    def synchronize(self) -> None:
        self._backend.synchronize()

    def versions(self) -> dict[str, str]:
        return self._backend.versions()

    def num_threads(self) -> int:
        return self._backend.num_threads()

    def code_generator(self) -> Any:
        return None

    def set_num_threads(self, n: int | None) -> None:
        self._backend.set_num_threads(n)


def without_kernels(backend: str | Backend | None = None) -> Backend:
    """A backend like another, but with no kernel for what can be composed, and no derivative of its own.

    What it computes is the truth that fast kernels are held against. There is one such backend for each backend.

    Args:
        backend: the one to take kernels away from; the current one if None.

    >>> from gradflow.testing.backends import without_kernels
    >>> plain = without_kernels("numpy")
    >>> "softmax" in plain.kernels, "exp" in plain.kernels
    (False, True)
    >>> gf.softmax(gf.zeros(2, backend=plain))
    tensor([0.5, 0.5], backend='rules-only')
    """
    return _stripped(resolve(backend))


@functools.cache
def _stripped(backend: Backend) -> Backend:
    return _WithoutKernels(backend)
