"""A second backend where only one is installed: the same arrays, without kernels for what can be composed."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from gradflow.backend import Array, Backend, resolve
from gradflow.primitive import REGISTRY


class _WithoutKernels(Backend):
    """Another backend, less its fused kernels and fast derivatives."""

    def __init__(self, whole: Backend) -> None:
        self.whole = whole
        self.name, self.device = f"{whole.name}-without-kernels", whole.device
        self.kernels = {
            name: kernel
            for name, kernel in whole.kernels.items()
            if name not in REGISTRY or REGISTRY[name].impl is None
        }
        self.residual_kernels, self.vjps = {}, {}

    def asarray(self, obj: Any, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> Array:
        """As the whole backend."""
        return self.whole.asarray(obj, dtype, copy)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """As the whole backend."""
        return self.whole.to_numpy(array)

    def extent(self, array: Array) -> tuple[Any, int, int]:
        """As the whole backend."""
        return self.whole.extent(array)

    def synchronize(self) -> None:
        """As the whole backend."""
        self.whole.synchronize()

    def versions(self) -> dict[str, str]:
        """As the whole backend."""
        return self.whole.versions()

    def num_threads(self) -> int:
        """As the whole backend."""
        return self.whole.num_threads()


@functools.cache
def without_kernels(backend: str | Backend) -> Backend:
    """The backend without the kernels and derivatives that can be composed from others: only rules and compositions.

    What it computes is what the generic rules say, so a fast kernel can be held against it.

    >>> from gradflow.testing import without_kernels
    >>> plain = without_kernels("numpy")
    >>> "softmax" in plain.kernels, gf.softmax(gf.tensor([0.0, 0.0], backend=plain)).tolist()
    (False, [0.5, 0.5])
    """
    return _WithoutKernels(resolve(backend))
