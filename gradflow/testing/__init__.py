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
from gradflow.testing.comparison import Rejection
from gradflow.testing.derivatives import Checked, KinkWarning, check_grads, gradcheck, gradgradcheck
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
    from gradflow.testing.instructions import Step
    from gradflow.testing.layers import batches, constructs, constructs_loss, losses, modules
    from gradflow.testing.operands import Call, calls, operands_of
    from gradflow.testing.program import Program, programs
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

_NEED_HYPOTHESIS = {  # module -> what it offers; imported when one of them is first used
    "instructions": ("Step",),
    "layers": ("batches", "constructs", "constructs_loss", "losses", "modules"),
    "operands": ("Call", "calls", "operands_of"),
    "program": ("Program", "programs"),
    "strategies": (
        "arrays", "axes", "broadcastable_shapes", "dtypes", "index_keys", "layouts", "nasty_values", "shapes",
        "stretchable_shapes",
    ),
}  # fmt: skip
_STRATEGIES = {name: f"gradflow.testing.{module}" for module, names in _NEED_HYPOTHESIS.items() for name in names}


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
    "Call", "Checked", "GradcheckError", "KinkWarning", "MutatedInputError", "NondeterministicError", "Program",
    "PropertyError", "Rejection", "Step", "WrongDerivativeError", "arrays", "axes", "backend_parity", "batches",
    "broadcastable_shapes", "calls", "check_adjoint", "check_batching", "check_broadcasting", "check_chain_rule",
    "check_grads", "check_hessian_symmetry", "check_linearity", "check_replay", "constructs", "constructs_loss",
    "dtypes", "gradcheck", "gradgradcheck", "index_keys", "layouts", "losses", "modules", "nasty_values",
    "operands_of", "programs", "shapes", "stretchable_shapes", "without_kernels",
]  # fmt: skip
