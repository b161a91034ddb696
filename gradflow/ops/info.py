"""What gradflow says of itself as a namespace of the array API standard."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradflow.backend import get_backend
from gradflow.config import get_default_dtype
from gradflow.errors import ArgumentError, explain
from gradflow.ops.creation import DTYPES
from gradflow.ops.dtypes import dtypes_of


class __array_namespace_info__:  # noqa: N801
    """What the namespace can do, where, and with which dtypes, for the backend that is chosen.

    Source: Python array API standard 2024.12, "Inspection".

    >>> info = gf.__array_namespace_info__()
    >>> info.default_device(), info.default_dtypes()["real floating"]
    ('cpu', dtype('float32'))
    """

    def capabilities(self) -> dict[str, Any]:
        """What the standard leaves to the library: masks and other results whose shape depends on values, and axes.

        >>> gf.__array_namespace_info__().capabilities()["boolean indexing"]
        True
        """
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": 64}

    def default_device(self) -> str:
        """Where a new tensor lies.

        >>> gf.__array_namespace_info__().default_device()
        'cpu'
        """
        return get_backend().device

    def devices(self) -> list[str]:
        """The devices of the backend's instance that is chosen: one.

        >>> gf.__array_namespace_info__().devices()
        ['cpu']
        """
        return [get_backend().device]

    def default_dtypes(self, *, device: Any = None) -> dict[str, np.dtype[Any]]:
        """The dtypes that Python numbers and index functions get, by kind.

        >>> gf.__array_namespace_info__().default_dtypes()["indexing"]
        dtype('int64')
        """
        self._check(device)
        return {"real floating": get_default_dtype(), "integral": DTYPES["int64"], "indexing": DTYPES["int64"]}

    def dtypes(self, *, device: Any = None, kind: str | tuple[str, ...] | None = None) -> dict[str, np.dtype[Any]]:
        """All dtypes, or those of a kind or several, by name.

        Raises:
            ArgumentError: a kind that the standard does not name.

        >>> list(gf.__array_namespace_info__().dtypes(kind="real floating"))
        ['float32', 'float64']
        """
        self._check(device)
        if kind is None:
            return dict(DTYPES)
        found: dict[str, np.dtype[Any]] = {}
        for one in kind if isinstance(kind, tuple) else (kind,):
            found |= dtypes_of(one)
        return found

    def _check(self, device: Any) -> None:
        if device is not None and device not in self.devices():
            raise ArgumentError(
                explain(
                    f"device {device!r} is none of the chosen backend's.",
                    f"its devices are {self.devices()}.",
                    "gf.__array_namespace_info__().devices()",
                )
            )


__all__ = ["__array_namespace_info__"]
