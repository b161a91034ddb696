"""Random composed programs against NumPy, PyTorch and JAX: values, gradients, and derivatives of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import gradflow as gf
from gradflow.compiler import trace
from gradflow.testing.backends import without_kernels
from gradflow.testing.instructions import INSTRUCTIONS
from gradflow.testing.program import Program, programs
from gradflow.testing.strategies import direction, generators

Rng = np.random.Generator


def reduced(terms: Any, reduction: str) -> Any:
    return terms if reduction == "none" else getattr(terms, reduction)()


# ---------------------------------------------------------------- each library under the names that programs use
class NumPy:
    """NumPy and SciPy."""

    from scipy.special import erf, log_softmax, ndtr, softmax
    from scipy.special import expit as sigmoid

    erf, sigmoid, log_softmax, ndtr, softmax = map(staticmethod, (erf, sigmoid, log_softmax, ndtr, softmax))

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def relu(self, x: Any) -> Any:
        return np.maximum(x, 0)

    def silu(self, x: Any) -> Any:
        return x * self.sigmoid(x)

    def gelu(self, x: Any, *, approximate: str) -> Any:
        if approximate == "tanh":
            return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return x * self.ndtr(x)

    def layer_norm(self, x: Any, weight: Any = 1, bias: Any = 0, *, axis: Any, eps: float) -> Any:
        return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + eps) * weight + bias

    def embedding(self, indices: Any, weight: Any) -> Any:
        return weight[indices]

    def softplus(self, x: Any) -> Any:
        return np.logaddexp(x, 0)

    def logsumexp(self, x: Any, **settings: Any) -> Any:
        return np.log(np.sum(np.exp(x), **settings))

    def reshape(self, x: Any, *, shape: Any) -> Any:
        return np.reshape(x, shape)

    def astype(self, x: Any, dtype: Any) -> Any:
        return np.asarray(x).astype(dtype)

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return np.einsum("...i,oi->...o", x, weight) + bias

    def mse_loss(self, x: Any, target: Any, *, reduction: str) -> Any:
        return reduced(np.square(x - target), reduction)

    def binary_cross_entropy(self, x: Any, target: Any, *, reduction: str) -> Any:
        return reduced(-target * np.log(x) - (1 - target) * np.log1p(-x), reduction)

    def binary_cross_entropy_with_logits(self, x: Any, target: Any, *, reduction: str) -> Any:
        return reduced(np.logaddexp(x, 0) - target * x, reduction)

    def cross_entropy(self, x: Any, labels: Any, *, reduction: str) -> Any:
        return reduced(-self.log_softmax(x, axis=1)[np.arange(len(x)), labels], reduction)


class Torch:
    """PyTorch, by its own functions: axes are called dim there, and a number beside a tensor must be a tensor."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.F = torch.nn.functional

    def __getattr__(self, name: str) -> Any:
        if name in ("float64", "float32"):
            return getattr(self.torch, name)
        names = {"concat": "cat", "permute_dims": "permute", "expand_dims": "unsqueeze", "copy": "clone"}
        function = getattr(self.torch, names.get(name, name))

        def call(*operands: Any, **settings: Any) -> Any:
            if "axis" in settings:
                settings["dim"] = settings.pop("axis")
            if "axes" in settings:
                settings["dims"] = settings.pop("axes")
            if "shape" in settings:
                operands, settings = (*operands, settings["shape"]), {}
            return function(*map(self.tensor, operands), **settings)

        return call

    def tensor(self, operand: Any) -> Any:
        return self.torch.tensor(operand) if isinstance(operand, float | np.ndarray) else operand

    def reduce(self, function: Callable[..., Any], x: Any, axis: Any, keepdims: bool, **settings: Any) -> Any:
        dim = tuple(range(x.ndim)) if axis is None else axis
        return function(x, dim, keepdim=keepdims, **settings) if x.ndim else function(x[None], 0, **settings)

    def sum(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return self.reduce(self.torch.sum, x, axis, keepdims)

    def mean(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return self.reduce(self.torch.mean, x, axis, keepdims)

    def max(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return self.reduce(self.torch.amax, x, axis, keepdims)

    def min(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return self.reduce(self.torch.amin, x, axis, keepdims)

    def logsumexp(self, x: Any, axis: Any = None, keepdims: bool = False) -> Any:
        return self.reduce(self.torch.logsumexp, x, axis, keepdims)

    def var(self, x: Any, axis: Any = None, correction: float = 0, keepdims: bool = False) -> Any:
        return self.reduce(self.torch.var, x, axis, keepdims, correction=correction)

    def std(self, x: Any, axis: Any = None, correction: float = 0, keepdims: bool = False) -> Any:
        return self.reduce(self.torch.std, x, axis, keepdims, correction=correction)

    def clip(self, x: Any, low: Any, high: Any) -> Any:
        # its derivative wants operands of one shape
        x, low, high = self.torch.broadcast_tensors(x, self.tensor(low), self.tensor(high))
        return self.torch.clip(x, low, high)

    def astype(self, x: Any, dtype: Any) -> Any:
        return x.to(dtype, copy=True)

    def matrix_transpose(self, x: Any) -> Any:
        return x.mT

    def power(self, x: Any, y: Any) -> Any:
        return self.torch.pow(x, y)

    def take(self, x: Any, indices: Any, *, axis: int) -> Any:
        return self.torch.index_select(x, axis, self.tensor(indices))

    def take_along_axis(self, x: Any, indices: Any, *, axis: int) -> Any:
        return self.torch.take_along_dim(x, self.tensor(indices), axis)

    # PyTorch has no slices that run backwards: NumPy says which elements a key names, in row-major order.
    def places(self, x: Any, key: Any) -> Any:
        return self.torch.tensor(np.arange(x.numel()).reshape(x.shape)[key].copy())

    def getitem(self, x: Any, *, key: Any) -> Any:
        return x.reshape(-1)[self.places(x, key)]

    def setitem(self, x: Any, value: Any, *, key: Any) -> Any:
        return x.reshape(-1).index_put((self.places(x, key),), value).reshape(x.shape)

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.F.linear(x, weight, bias)

    def silu(self, x: Any) -> Any:
        return self.F.silu(x)

    def gelu(self, x: Any, *, approximate: str) -> Any:
        return self.F.gelu(x, approximate=approximate)

    def layer_norm(self, x: Any, weight: Any = None, bias: Any = None, *, axis: Any, eps: float) -> Any:
        return self.F.layer_norm(x, x.shape[x.ndim - np.size(axis) :], weight, bias, eps)

    def embedding(self, indices: Any, weight: Any) -> Any:
        return self.F.embedding(self.tensor(indices), weight)

    def dropout_of(self, x: Any, keep: Any, *, p: float) -> Any:
        return x * self.tensor(keep) / (1 - p)

    def softplus(self, x: Any) -> Any:
        return self.F.softplus(x, threshold=1e9)

    def mse_loss(self, x: Any, target: Any, *, reduction: str) -> Any:
        return self.F.mse_loss(x, target, reduction=reduction)

    def binary_cross_entropy(self, x: Any, target: Any, *, reduction: str) -> Any:
        return self.F.binary_cross_entropy(x, target, reduction=reduction)

    def binary_cross_entropy_with_logits(self, x: Any, target: Any, *, reduction: str) -> Any:
        return self.F.binary_cross_entropy_with_logits(x, target, reduction=reduction)

    def cross_entropy(self, x: Any, labels: Any, *, reduction: str) -> Any:
        return self.F.cross_entropy(x, self.tensor(labels), reduction=reduction)


class Jax:
    """JAX, by jax.numpy and jax.nn."""

    def __init__(self, jax: Any) -> None:
        self.jax = jax
        self.jnp = jax.numpy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.jnp if hasattr(self.jnp, name) else self.jax.nn, name)

    def setitem(self, x: Any, value: Any, *, key: Any) -> Any:
        return x.at[key].set(value)

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return self.jnp.dot(x, weight.T) + bias

    def erf(self, x: Any) -> Any:
        return self.jax.lax.erf(x)

    def gelu(self, x: Any, *, approximate: str) -> Any:
        return self.jax.nn.gelu(x, approximate=approximate == "tanh")

    def layer_norm(self, x: Any, weight: Any = 1, bias: Any = 0, *, axis: Any, eps: float) -> Any:
        return (x - x.mean(axis, keepdims=True)) / self.jnp.sqrt(x.var(axis, keepdims=True) + eps) * weight + bias

    def embedding(self, indices: Any, weight: Any) -> Any:
        return weight[indices]

    def mse_loss(self, x: Any, target: Any, *, reduction: str) -> Any:
        return reduced(self.jnp.square(x - target), reduction)

    def binary_cross_entropy(self, x: Any, target: Any, *, reduction: str) -> Any:
        return reduced(-target * self.jnp.log(x) - (1 - target) * self.jnp.log1p(-x), reduction)

    def binary_cross_entropy_with_logits(self, x: Any, target: Any, *, reduction: str) -> Any:
        log_p, log_q = self.jax.nn.log_sigmoid(x), self.jax.nn.log_sigmoid(-x)
        return reduced(-target * log_p - (1 - target) * log_q, reduction)

    def cross_entropy(self, x: Any, labels: Any, *, reduction: str) -> Any:
        return reduced(-self.jax.nn.log_softmax(x, axis=1)[np.arange(len(x)), labels], reduction)


@pytest.fixture(scope="module")
def jax() -> Iterator[Any]:
    jax = pytest.importorskip("jax")
    with jax.enable_x64(True):
        yield jax
    jax.clear_caches()  # every program leaves operations compiled for its shapes


# ---------------------------------------------------------------- gradflow's own side
def pulled_back(program: Program, cotangent: np.ndarray, dtype: Any = None, backend: Any = None) -> list[np.ndarray]:
    """The value, and the cotangents of the inputs."""
    inputs = (gf.tensor(x, dtype=dtype, backend=backend) for x in program.inputs)
    out, pull = gf.vjp(partial(program, gf), *inputs)
    return [t.numpy() for t in (out, *pull(gf.asarray(cotangent, dtype=out.dtype, backend=backend)))]


def close(actual: Any, expected: Any, tolerance: float) -> None:
    """To a tolerance relative to the largest of the expected values, or to 1."""
    expected = np.asarray(expected)
    assert np.shape(actual) == expected.shape
    scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * scale)


# ---------------------------------------------------------------- the comparisons
@given(program=programs())
def test_values_are_numpys(program: Program) -> None:
    close(program(gf, *map(gf.tensor, program.inputs)).numpy(), program(NumPy(), *program.inputs), 1e-10)


@given(program=programs(max_steps=12), rng=generators)
def test_gradients_are_torchs(program: Program, rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    inputs = [torch.tensor(x, requires_grad=True) for x in program.inputs]
    out = program(Torch(torch), *inputs)
    cotangent = direction(rng, tuple(out.shape))
    theirs = torch.autograd.grad(out, inputs, torch.tensor(cotangent), materialize_grads=True)
    ours = pulled_back(program, cotangent)
    for actual, expected in zip(ours, (out, *theirs), strict=True):
        close(actual, expected.detach().numpy(), 1e-9)


@given(program=programs(instructions=INSTRUCTIONS.keys() - {"astype"}), rng=generators)
def test_gradients_in_single_precision_are_torchs(program: Program, rng: Rng) -> None:
    torch = pytest.importorskip("torch")
    inputs = [torch.tensor(x, dtype=torch.float32, requires_grad=True) for x in program.inputs]
    out = program(Torch(torch), *inputs)
    cotangent = direction(rng, tuple(out.shape))
    theirs = torch.autograd.grad(out, inputs, torch.tensor(cotangent, dtype=torch.float32), materialize_grads=True)
    ours = pulled_back(program, cotangent, np.float32)
    for actual, expected in zip(ours, (out, *theirs), strict=True):
        assert actual.dtype == np.float32
        close(actual, expected.detach().numpy(), 2e-3)


@settings(max_examples=25)  # JAX compiles each program
@given(program=programs(), rng=generators)
def test_gradients_and_their_gradients_are_jaxs(jax: Any, program: Program, rng: Rng) -> None:
    """The derivative of ⟨u, f⟩ in the inputs, and that of its own product with random directions."""
    xp, jnp = Jax(jax), jax.numpy
    steps = [direction(rng, x.shape) for x in program.inputs]
    out = program(gf, *map(gf.tensor, program.inputs))
    cotangent = direction(rng, out.shape)

    def ours(*x: Any) -> Any:
        return (program(gf, *x) * cotangent).sum()

    def theirs(*x: Any) -> Any:
        return (program(xp, *x) * cotangent).sum()

    everything = tuple(range(len(steps)))

    def ours_along(*x: Any) -> Any:
        return sum((g * v).sum() for g, v in zip(gf.grad(ours, everything)(*x), steps, strict=True))

    def theirs_along(*x: Any) -> Any:
        firsts = jax.grad(theirs, everything)(*x)
        return sum((g * v).sum() for g, v in zip(firsts, steps, strict=True)), firsts

    tensors = tuple(map(gf.tensor, program.inputs))
    compiled = jax.jit(jax.grad(theirs_along, everything, has_aux=True))  # twice as fast as operation by operation
    seconds, firsts = compiled(*map(jnp.asarray, program.inputs))
    for actual, expected in zip(gf.grad(ours, everything)(*tensors), firsts, strict=True):
        close(actual.numpy(), expected, 1e-9)
    for actual, expected in zip(gf.grad(ours_along, everything)(*tensors), seconds, strict=True):
        close(actual.numpy(), expected, 1e-8)


# ---------------------------------------------------------------- gradflow against itself
@given(program=programs(max_steps=12), rng=generators)
def test_kernels_compute_what_compositions_and_rules_do(program: Program, rng: Rng) -> None:
    cotangent = direction(rng, program(gf, *map(gf.tensor, program.inputs)).shape)
    ours, plain = (pulled_back(program, cotangent, backend=b) for b in ("numpy", without_kernels("numpy")))
    for actual, expected in zip(ours, plain, strict=True):
        close(actual, expected, 1e-9)


@given(program=programs(max_steps=12), rng=generators)
def test_a_replayed_trace_computes_what_the_program_does(program: Program, rng: Rng) -> None:
    """The value and the gradients, on the traced inputs and on others nearby."""

    def run(*x: Any) -> Any:
        value, grads = gf.value_and_grad(lambda *x: program(gf, *x).sum(), tuple(range(len(x))))(*x)
        return (value, *grads)

    nearby = [x + 1e-3 * direction(rng, x.shape) for x in program.inputs]
    _, recorded = trace(run, *map(gf.tensor, program.inputs))
    for inputs in (nearby, program.inputs):
        for actual, expected in zip(
            recorded.replay(*map(gf.tensor, inputs)), run(*map(gf.tensor, inputs)), strict=True
        ):
            close(actual.numpy(), expected.numpy(), 1e-12)
