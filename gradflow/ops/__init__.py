"""Every operation of gradflow: a file per family, each operation in one place with its derivative and docstring."""

from gradflow.ops import operators as operators
from gradflow.ops import random as random
from gradflow.ops import update as update
from gradflow.ops.creation import (
    arange,
    asarray,
    empty,
    empty_like,
    eye,
    from_dlpack,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    tensor,
    zeros,
    zeros_like,
)  # fmt: skip
from gradflow.ops.dtypes import can_cast, finfo, iinfo, isdtype, result_type
from gradflow.ops.elementwise import (
    abs,
    add,
    bitwise_and,
    bitwise_invert,
    bitwise_or,
    bitwise_xor,
    clip,
    divide,
    equal,
    erf,
    exp,
    floor,
    floor_divide,
    gelu,
    greater,
    greater_equal,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    log,
    log1p,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    multiply,
    negative,
    not_equal,
    positive,
    power,
    relu,
    remainder,
    sigmoid,
    sign,
    silu,
    softplus,
    sqrt,
    square,
    subtract,
    tanh,
    where,
)  # fmt: skip
from gradflow.ops.indexing import take, take_along_axis
from gradflow.ops.layers import dropout, embedding, layer_norm
from gradflow.ops.linalg import matmul, matrix_transpose
from gradflow.ops.neural import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    linear,
    log_softmax,
    logsumexp,
    mse_loss,
    softmax,
)  # fmt: skip
from gradflow.ops.random import Generator, manual_seed
from gradflow.ops.reduction import all, any, argmax, argmin, max, mean, min, std, sum, var
from gradflow.ops.shaping import (
    astype,
    broadcast_to,
    concat,
    copy,
    expand_dims,
    flatten,
    moveaxis,
    permute_dims,
    reshape,
    squeeze,
    stack,
)  # fmt: skip

concatenate = concat  # NumPy's name
pow = power  # the array API standard's

__all__ = [
    "Generator", "abs", "add", "all", "any", "arange", "argmax", "argmin", "asarray", "astype", "binary_cross_entropy",
    "binary_cross_entropy_with_logits", "bitwise_and", "bitwise_invert", "bitwise_or", "bitwise_xor", "broadcast_to",
    "can_cast", "clip", "concat", "concatenate", "copy", "cross_entropy", "divide", "dropout", "embedding", "empty",
    "empty_like", "equal", "erf", "exp", "expand_dims", "eye", "finfo", "flatten", "floor", "floor_divide",
    "from_dlpack", "full", "full_like", "gelu", "greater", "greater_equal", "iinfo", "isdtype", "isfinite", "isinf",
    "isnan", "layer_norm", "less", "less_equal", "linear", "linspace", "log", "log1p", "log_softmax", "logical_and",
    "logical_not", "logical_or", "logical_xor", "logsumexp", "manual_seed", "matmul", "matrix_transpose", "max",
    "maximum", "mean", "min", "minimum", "moveaxis", "mse_loss", "multiply", "negative", "not_equal", "ones",
    "ones_like", "permute_dims", "positive", "pow", "power", "random", "relu", "remainder", "reshape", "result_type",
    "sigmoid", "sign", "silu", "softmax", "softplus", "sqrt", "square", "squeeze", "stack", "std", "subtract", "sum",
    "take", "take_along_axis", "tanh", "tensor", "var", "where", "zeros", "zeros_like",
]  # fmt: skip
