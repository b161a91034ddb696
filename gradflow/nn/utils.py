"""All weights as one vector, networks as functions of their weights, and clipped gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from typing import Any

import numpy as np

from gradflow.arguments import flag, number, wrong_kind
from gradflow.errors import ArgumentError, DTypeError, ShapeError, explain
from gradflow.nn.module import Buffer, Module, slots
from gradflow.ops.creation import DTYPES, zeros
from gradflow.ops.elementwise import abs as abs_
from gradflow.ops.elementwise import add, maximum, minimum
from gradflow.ops.shaping import concat, reshape
from gradflow.tensor import Parameter, Tensor, no_grad


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """Return all parameters as ONE vector w = [W₁ | b₁ | W₂ | b₂ | …]; derivatives flow through.

    Args:
        parameters: Tensors, ``model.parameters()`` for instance; of an MLP it takes each W row by row.

    >>> gf.nn.utils.parameters_to_vector(gf.nn.MLP([2, 10, 1]).parameters()).shape
    (41,)
    """
    return concat([reshape(p, (-1,)) for p in _tensors("parameters_to_vector", parameters, "model.parameters()")])


def vector_to_parameters(vector: Tensor, parameters: Iterable[Tensor]) -> None:
    """Write a vector of all weights into the parameters, in place: the inverse of `parameters_to_vector`.

    Raises:
        ShapeError: the vector's length is not the number of weights.

    >>> model = gf.nn.Linear(2, 1)
    >>> gf.nn.utils.vector_to_parameters(gf.tensor([1.0, 2.0, 3.0]), model.parameters())
    >>> model.weight, model.bias
    (parameter([[1., 2.]]), parameter([3.]))
    """
    parameters = _tensors("vector_to_parameters", parameters, "vector, model.parameters()")
    if not isinstance(vector, Tensor):
        fix = "gf.nn.utils.vector_to_parameters(vector, model.parameters())"
        raise wrong_kind("vector_to_parameters", "vector", vector, "it is one Tensor of all weights.", fix)
    with no_grad():
        for parameter, values in zip(parameters, _split(vector, parameters), strict=True):
            parameter[...] = values


def _split(vector: Tensor, like: list[Tensor]) -> Iterator[Tensor]:
    total = sum(tensor.size for tensor in like)
    if vector.shape != (total,):
        raise ShapeError(
            explain(
                f"a vector of shape {vector.shape} for {total} weights.",
                "it holds every weight of every parameter, in order.",
                "parameters_to_vector(model.parameters()) is one",
            )
        )
    start = 0
    for tensor in like:
        yield reshape(vector[start : start + tensor.size], tensor.shape)
        start += tensor.size


def functional_call(model: Module, parameters: Mapping[str, Tensor] | Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return f_w(x): what the model computes with other weights w in place of its parameters.

    Derivatives with respect to w flow through. The model has its own parameters back afterwards, whatever happens;
    meanwhile no other thread may use it.

    Args:
        model: the network f.
        parameters: w, as Tensors by the names of parameters or buffers (those not named keep their values), or as one
            vector of all parameters, as `parameters_to_vector` makes it.
        *args: the model's arguments.
        **kwargs: the model's keyword arguments.

    Raises:
        ArgumentError: a name that the model does not have, or two Tensors for one tied parameter.
        ShapeError: a Tensor or vector of the wrong shape.
        DTypeError: values that are no Tensors, or a parameter that stands in a tuple.

    >>> model = gf.nn.Linear(2, 1)
    >>> w = gf.tensor([1.0, 2.0, 3.0], requires_grad=True)
    >>> gf.nn.functional_call(model, w, gf.tensor([10.0, 20.0])).backward()
    >>> w.grad
    tensor([10., 20.,  1.])
    """
    fix = "functional_call(model, dict(model.named_parameters()), x)"
    if not isinstance(model, Module):
        raise wrong_kind("functional_call", "model", model, "it calls a Module with other weights.", fix)
    if not isinstance(parameters, Mapping | Tensor):
        reason = "they are Tensors by name, or one vector."
        raise wrong_kind("functional_call", "parameters", parameters, reason, fix)
    places = [slot for slot in slots(model, every_name=True) if isinstance(slot.value, Parameter | Buffer)]
    if isinstance(parameters, Tensor):
        named = dict(Module.named_parameters(model))
        parameters = dict(zip(named, _split(parameters, list(named.values())), strict=True))
    held = {slot.path: slot.value for slot in places}
    new: dict[int, Tensor] = {}
    for name, tensor in parameters.items():
        if name not in held:
            raise ArgumentError(
                explain(
                    f"functional_call got {name!r}, which {type(model).__name__} does not have.",
                    f"its parameters and buffers are {', '.join(held)}.",
                    fix,
                )
            )
        if not isinstance(tensor, Tensor):
            raise DTypeError(
                explain(
                    f"functional_call got a {type(tensor).__name__} as {name!r}.", "it takes Tensors.", "gf.tensor(...)"
                )
            )
        if tensor.shape != held[name].shape:
            raise ShapeError(
                explain(
                    f"functional_call got {name!r} of shape {tensor.shape}.",
                    f"the model's has shape {held[name].shape}.",
                    f"reshape it to {held[name].shape}",
                )
            )
        if new.setdefault(id(held[name]), tensor) is not tensor:
            raise ArgumentError(
                explain(
                    f"functional_call got two Tensors for one parameter, the second as {name!r}.",
                    "the model ties it: it is one parameter under several names.",
                    "give it under one name",
                )
            )
    changed = [slot for slot in places if id(slot.value) in new]
    for slot in changed:
        if isinstance(slot.holder, tuple):
            raise DTypeError(
                explain(
                    f"functional_call cannot replace {slot.path!r}.",
                    "it stands in a tuple, which cannot be changed.",
                    "keep parameters in a list",
                )
            )
    try:
        for slot in changed:
            slot.holder[slot.key] = new[id(slot.value)]
        return model(*args, **kwargs)
    finally:
        for slot in changed:
            slot.holder[slot.key] = slot.value


def clip_grad_norm_(
    parameters: Iterable[Tensor] | Tensor, max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False
) -> Tensor:
    """Scale all gradients together so that their norm, as one vector g, is at most c: g ← g · min(1, c/‖g‖).

    Args:
        parameters: those whose ``grad`` is scaled, in place; those without one are passed over.
        max_norm: the bound c ≥ 0.
        norm_type: p of the p-norm; ``math.inf`` for the largest element.
        error_if_nonfinite: raise where ‖g‖ is infinite or NaN, before anything is scaled. It reads the norm, which a
            traced step refuses. Without it an infinite norm leaves NaN where a gradient was infinite and 0 elsewhere.

    Returns:
        ‖g‖ before clipping.

    Raises:
        ArgumentError: a negative bound, a p that is not positive, or (if asked for) a norm that is not finite.

    >>> w = gf.Parameter([3.0, 4.0])
    >>> (w * w).sum().backward()
    >>> gf.nn.utils.clip_grad_norm_([w], max_norm=1.0)
    tensor(10.)
    >>> w.grad
    tensor([0.59999..., 0.79999...])

    Reference: Pascanu, Mikolov and Bengio, *On the difficulty of training recurrent neural networks*, ICML 2013.
    """
    fix = "clip_grad_norm_(model.parameters(), max_norm=1.0)"
    max_norm = number("clip_grad_norm_", "max_norm", max_norm, fix=fix)
    norm_type = number("clip_grad_norm_", "norm_type", norm_type, fix="norm_type=2.0")
    if not (max_norm >= 0 and norm_type > 0):
        raise ArgumentError(
            explain(
                f"clip_grad_norm_ got max_norm={max_norm!r}, norm_type={norm_type!r}.",
                "a norm is not negative, and p is positive.",
                fix,
            )
        )
    refuse = flag("clip_grad_norm_", "error_if_nonfinite", error_if_nonfinite)
    with no_grad():
        grads = _grads("clip_grad_norm_", parameters)
        if not grads:
            return zeros(())
        if norm_type == math.inf:
            norm = reduce(maximum, [abs_(grad).max() for grad in grads])
        else:
            wide = DTYPES["float64"]  # the squares of exploding gradients overflow in float32
            norm = reduce(add, [(abs_(grad.astype(wide)) ** norm_type).sum() for grad in grads]) ** (1 / norm_type)
        if refuse and not math.isfinite(norm.item()):
            raise ArgumentError(
                explain(
                    f"clip_grad_norm_: the norm of the gradients is {norm.item()}.",
                    "it was called with error_if_nonfinite=True; nothing was scaled.",
                    "with gf.detect_anomaly(): around the step says where it comes from",
                )
            )
        scale = minimum(max_norm / (norm + 1e-6), 1.0)
        scales = {dtype: scale.astype(dtype) for dtype in dict.fromkeys(grad.dtype for grad in grads)}
        for grad in grads:
            grad *= scales[grad.dtype]
        return norm.astype(grads[0].dtype)


def clip_grad_value_(parameters: Iterable[Tensor] | Tensor, clip_value: float) -> None:
    """Bring every element of every gradient into [−clip_value, clip_value], in place.

    Raises:
        ArgumentError: a negative bound.

    >>> w = gf.Parameter([0.25, 4.0])
    >>> (w * w).sum().backward()
    >>> gf.nn.utils.clip_grad_value_([w], 1.0)
    >>> w.grad
    tensor([0.5, 1. ])
    """
    clip_value = number("clip_grad_value_", "clip_value", clip_value)
    if not clip_value >= 0:
        raise ArgumentError(
            explain(f"clip_grad_value_ got clip_value={clip_value!r}.", "the bound is on the size.", "clip_value=1.0")
        )
    with no_grad():
        for grad in _grads("clip_grad_value_", parameters):
            grad[...] = grad.clip(-clip_value, clip_value)


def _grads(function: str, parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    given = (
        [parameters] if isinstance(parameters, Tensor) else _tensors(function, parameters, "model.parameters(), 1.0")
    )
    return [parameter.grad for parameter in given if parameter.grad is not None]


def _tensors(function: str, parameters: Iterable[Tensor], corrected: str) -> list[Tensor]:
    """The parameters as a list, each a Tensor; `corrected` are the arguments of a right call."""
    fix = f"gf.nn.utils.{function}({corrected})"
    if isinstance(parameters, Module | Tensor | str | bytes | np.ndarray | Mapping) or not hasattr(
        parameters, "__iter__"
    ):
        raise wrong_kind(function, "parameters", parameters, "it takes an iterable of Tensors.", fix)
    given = list(parameters)
    for i, parameter in enumerate(given):
        if not isinstance(parameter, Tensor):
            raise wrong_kind(function, f"parameter {i}", parameter, "parameters are Tensors.", fix)
    return given
