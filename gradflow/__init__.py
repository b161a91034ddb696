"""gradflow: reverse-mode automatic differentiation for the NumPy, Numba and CuPy world."""

from __future__ import annotations

from math import e, inf, nan, pi
from typing import TYPE_CHECKING, Any

from gradflow import ops
from gradflow._version import __version__
from gradflow.backend import (
    backends,
    get_backend,
    get_num_threads,
    set_backend,
    set_num_threads,
    use_backend,
)
from gradflow.config import get_default_dtype, set_default_dtype
from gradflow.ops import *  # noqa: F403
from gradflow.ops.creation import DTYPES as _DTYPES
from gradflow.ops.info import __array_namespace_info__
from gradflow.primitive import defimpl, defvjp, primitive
from gradflow.tensor import API_VERSIONS as _API_VERSIONS
from gradflow.tensor import Parameter, Tensor, enable_grad, is_grad_enabled, no_grad, set_grad_enabled
from gradflow.transforms import custom_vjp, grad, hessian, hvp, jacobian, jvp, value_and_grad, vjp

if TYPE_CHECKING:
    from gradflow import compiler, data, nn, optim, training, transforms
    from gradflow.anomaly import detect_anomaly
    from gradflow.compiler import compile
    from gradflow.data import datasets
    from gradflow.nn import functional_call
    from gradflow.serialization import load, save

bool = _DTYPES["bool"]
int8, int16, int32, int64 = (_DTYPES[f"int{bits}"] for bits in (8, 16, 32, 64))
uint8, uint16, uint32, uint64 = (_DTYPES[f"uint{bits}"] for bits in (8, 16, 32, 64))
float32, float64 = _DTYPES["float32"], _DTYPES["float64"]

newaxis = None  # t[newaxis]: an axis of length 1
__array_api_version__ = _API_VERSIONS[-1]

__all__ = [
    "Parameter",
    "Tensor",
    "__array_api_version__",
    "__array_namespace_info__",
    "__version__",
    "backends",
    "bool",
    "compile",
    "compiler",
    "custom_vjp",
    "data",
    "datasets",
    "defimpl",
    "defvjp",
    "detect_anomaly",
    "e",
    "enable_grad",
    "float32",
    "float64",
    "functional_call",
    "get_backend",
    "get_default_dtype",
    "get_num_threads",
    "grad",
    "hessian",
    "hvp",
    "inf",
    "int8",
    "int16",
    "int32",
    "int64",
    "is_grad_enabled",
    "jacobian",
    "jvp",
    "load",
    "nan",
    "newaxis",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "pi",
    "primitive",
    "save",
    "set_backend",
    "set_default_dtype",
    "set_grad_enabled",
    "set_num_threads",
    "training",
    "transforms",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "use_backend",
    "value_and_grad",
    "vjp",
]  # fmt: skip
__all__ += ops.__all__

_LATER = {  # imported at first use: `import gradflow` stays light
    "compiler": "gradflow.compiler",
    "data": "gradflow.data",
    "datasets": "gradflow.data.datasets",
    "nn": "gradflow.nn",
    "optim": "gradflow.optim",
    "training": "gradflow.training",
}
_LATER_NAMES = {
    "compile": "gradflow.compiler",
    "detect_anomaly": "gradflow.anomaly",
    "functional_call": "gradflow.nn",
    "load": "gradflow.serialization",
    "save": "gradflow.serialization",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _LATER:
        return import_module(_LATER[name])
    if name in _LATER_NAMES:
        return getattr(import_module(_LATER_NAMES[name]), name)
    raise AttributeError(f"module 'gradflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_LATER_NAMES})
