"""Tests of derivatives, for functions, layers, primitives and backends of one's own.

`gradcheck` and its relatives hold a derivative against finite differences. The properties (`check_linearity`,
`check_adjoint` and the others, `backend_parity`) take one call each. The strategies draw shapes, arrays, memory
layouts, keys, modules, calls of primitives and whole programs for Hypothesis, which is imported only when one of them
is used. Where pytest is installed, gradflow brings it the fixture `gradcheck` and the option `--gradflow-backends`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gradflow.errors import (
    GradcheckError,
    MissingDependencyError,
    MutatedInputError,
    NondeterministicError,
    PropertyError,
    WrongDerivativeError,
    explain,
)
from gradflow.testing.backends import without_kernels
from gradflow.testing.gradcheck import Checked, KinkWarning, Rejection, check_grads, gradcheck, gradgradcheck
from gradflow.testing.properties import (
    backend_parity,
    check_adjoint,
    check_batching,
    check_broadcasting,
    check_chain_rule,
    check_hessian_symmetry,
    check_linearity,
    check_replay,
)

if TYPE_CHECKING:
    from gradflow.testing.calls import Call, calls, operands_of
    from gradflow.testing.strategies import (
        arrays,
        axes,
        broadcastable_shapes,
        dtypes,
        index_keys,
        layouts,
        nasty_values,
        shapes,
        stretchable_shapes,
    )

_STRATEGIES = {  # they need Hypothesis, which is imported when one of them is first used
    **dict.fromkeys(("Call", "calls", "operands_of"), "gradflow.testing.calls"),
    **dict.fromkeys(
        (
            "arrays", "axes", "broadcastable_shapes", "dtypes", "index_keys", "layouts", "nasty_values", "shapes",
            "stretchable_shapes",
        ),
        "gradflow.testing.strategies",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _STRATEGIES:
        raise AttributeError(f"module 'gradflow.testing' has no attribute {name!r}")
    from importlib import import_module

    try:
        return getattr(import_module(_STRATEGIES[name]), name)
    except ModuleNotFoundError as error:
        if error.name != "hypothesis":
            raise
        raise MissingDependencyError(
            explain(f"testing.{name} needs hypothesis.", "it draws the examples.", "pip install hypothesis")
        ) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *_STRATEGIES})


__all__ = [
    "Call", "Checked", "GradcheckError", "KinkWarning", "MutatedInputError", "NondeterministicError", "PropertyError",
    "Rejection", "WrongDerivativeError", "arrays", "axes", "backend_parity", "broadcastable_shapes", "calls",
    "check_adjoint", "check_batching", "check_broadcasting", "check_chain_rule", "check_grads",
    "check_hessian_symmetry", "check_linearity", "check_replay", "dtypes", "gradcheck", "gradgradcheck", "index_keys",
    "layouts", "nasty_values", "operands_of", "shapes", "stretchable_shapes", "without_kernels",
]  # fmt: skip
