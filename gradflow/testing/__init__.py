"""Tests of derivatives, for functions, layers, primitives and backends of one's own.

`gradcheck` and its relatives hold a derivative against finite differences. The properties (`check_linearity`,
`check_adjoint` and the others, `backend_parity`) take one call each. The strategies draw shapes, arrays, memory
layouts, keys, modules, calls of primitives and whole programs for Hypothesis, which is imported only when one of them
is used. Where pytest is installed, gradflow brings it the fixture `gradcheck` and the option `--gradflow-backends`.
"""

from __future__ import annotations

from gradflow.errors import (
    GradcheckError,
    MutatedInputError,
    NondeterministicError,
    PropertyError,
    WrongDerivativeError,
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

__all__ = [
    "Checked", "GradcheckError", "KinkWarning", "MutatedInputError", "NondeterministicError", "PropertyError",
    "Rejection", "WrongDerivativeError", "backend_parity", "check_adjoint", "check_batching", "check_broadcasting",
    "check_chain_rule", "check_grads", "check_hessian_symmetry", "check_linearity", "check_replay", "gradcheck",
    "gradgradcheck", "without_kernels",
]  # fmt: skip
