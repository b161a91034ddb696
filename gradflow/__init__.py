"""gradflow: reverse-mode automatic differentiation for the NumPy, Numba and CuPy world."""

from __future__ import annotations

from gradflow import ops
from gradflow._version import __version__
from gradflow.backend import backends, get_backend, set_backend, use_backend
from gradflow.config import get_default_dtype, set_default_dtype
from gradflow.ops import *  # noqa: F403
from gradflow.ops.creation import DTYPES as _DTYPES
from gradflow.primitive import defimpl, defvjp, primitive
from gradflow.tensor import Parameter, Tensor, enable_grad, is_grad_enabled, no_grad, set_grad_enabled

globals().update(_DTYPES)  # gf.bool, gf.int8 … gf.uint64, gf.float32, gf.float64
