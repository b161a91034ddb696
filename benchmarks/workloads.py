"""The training steps that are timed, each built as a user of gradflow, PyTorch or JAX would write it.

A step is forward, backward and the optimizer's update in float32, from the same initial weights on the same batch, and
returns the loss before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

import gradflow as gf
from benchmarks.networks import DECAY, EPS, MOMENTUM, WITH_ARRAYS, Layer, Workload, flat, mlp, residual

Step = Callable[[], Any]
COMPARED = 5  # steps: small networks agree for thousands, the deep one is chaotic
TOLERANCE = 1e-4  # relative, of each loss against float64


class Targets(NamedTuple):
    """Ratios that are aimed at: of a compiled step to JAX, of an eager one to eager PyTorch."""

    compiled: float
    eager: float | None

    def of(self, program: str) -> tuple[float | None, str]:
        """The aim of a program and the peer it refers to; there is none for compiled NumPy."""
        if program.endswith("compiled"):
            return (self.compiled if "numba" in program else None), "jax"
        return self.eager, "torch"


WORKLOADS = {
    "tiny": Workload((*mlp((2, 10, 1), "tanh"),), "mse_loss", 64),
    "wide": Workload((*mlp((2, 100, 1), "tanh"),), "mse_loss", 256),
    "mnist": Workload((*mlp((784, 120, 120, 10), "relu"),), "cross_entropy", 128),
    "deep": Workload((*mlp((64, *[64] * 20, 10), "relu"),), "cross_entropy", 64),
    "big": Workload((*mlp((784, 1024, 1024, 10), "relu"),), "cross_entropy", 512),
    "residual": Workload(
        (Layer("linear", (784, 128)), residual(128, 512), residual(128, 512), Layer("linear", (128, 10))),
        "cross_entropy",
        128,
    ),
}
TARGETS = {
    "tiny": Targets(0.09, 0.16),
    "wide": Targets(0.30, 0.2),
    "mnist": Targets(0.50, 0.75),
    "deep": Targets(0.30, 0.45),
    "big": Targets(0.93, 1.0),
    "residual": Targets(0.65, None),
}


class Contender(NamedTuple):
    """A training in one framework: its step, and what brings it back to the initial weights, without moments."""

    step: Any
    restart: Callable[[], None]


# ---------------------------------------------------------------- gradflow
class Training(NamedTuple):
    """The parts of a gradflow training step."""

    model: gf.nn.Module
    loss_fn: Callable[..., gf.Tensor]
    optimizer: gf.optim.Optimizer
    x: gf.Tensor
    t: gf.Tensor


class _Mean(gf.nn.Module):
    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return x.mean(axis=1)


class _SkipGram(gf.nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        self.words, self.contexts = gf.nn.Embedding(rows, width), gf.nn.Embedding(rows, width)

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return (self.words(x[:, :1]) * self.contexts(x[:, 1:])).sum(axis=-1)


def _gradflow_layer(layer: Layer) -> gf.nn.Module:
    match layer.kind:
        case "residual":
            return gf.nn.Residual(*map(_gradflow_layer, layer.body))
        case "dropout":
            return gf.nn.Dropout(layer.sizes[0] / 100)
        case "gelu":
            return gf.nn.GELU(approximate="tanh")
    kinds = {
        "linear": gf.nn.Linear, "relu": gf.nn.ReLU, "tanh": gf.nn.Tanh, "sigmoid": gf.nn.Sigmoid,
        "layer_norm": gf.nn.LayerNorm, "embedding": gf.nn.Embedding, "mean": _Mean, "skip_gram": _SkipGram,
    }  # fmt: skip
    return kinds[layer.kind](*layer.sizes)


def gradflow_training(work: Workload, backend: str = "numpy") -> Training:
    x, t, layers = work.data()
    with gf.use_backend(backend):
        model = gf.nn.Sequential(*map(_gradflow_layer, work.layers))
        parameters = list(model.parameters())
        _set(parameters, layers)
        optimizer: gf.optim.Optimizer
        match work.optimizer:
            case "adam":
                optimizer = gf.optim.Adam(parameters, lr=work.lr)
            case "adamw":
                optimizer = gf.optim.AdamW(parameters, lr=work.lr, weight_decay=DECAY)
            case _:
                optimizer = gf.optim.SGD(parameters, lr=work.lr, momentum=MOMENTUM)
        return Training(model, getattr(gf, work.loss), optimizer, gf.tensor(x), gf.tensor(t))


def _set(parameters: list[gf.Tensor], layers: list[tuple[np.ndarray, ...]]) -> None:
    with gf.no_grad():
        for parameter, value in zip(parameters, (array for layer in layers for array in layer), strict=True):
            parameter[...] = gf.tensor(value, backend=parameter.backend)


def gradflow_function(training: Training) -> Callable[[gf.Tensor, gf.Tensor], gf.Tensor]:
    """The step as a function of a batch, as a user would compile it."""
    model, loss_fn, optimizer, *_ = training

    def step(x: gf.Tensor, t: gf.Tensor) -> gf.Tensor:
        loss = loss_fn(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def gradflow_contender(work: Workload, backend: str = "numpy", compiled: bool = False) -> Contender:
    training = gradflow_training(work, backend)
    model, _, optimizer, x, t = training
    fresh, layers = optimizer.state_dict(), work.data().layers
    function = gradflow_function(training)

    def restart() -> None:
        _set(list(model.parameters()), layers)
        optimizer.load_state_dict(fresh)

    return Contender(partial(gf.compile(function) if compiled else function, x, t), restart)


# ---------------------------------------------------------------- PyTorch
def _torch_layer(layer: Layer) -> Any:
    from torch import nn

    from benchmarks.torch_layers import Mean, Residual, SkipGram

    match layer.kind:
        case "residual":
            return Residual(*map(_torch_layer, layer.body))
        case "dropout":
            return nn.Dropout(layer.sizes[0] / 100)
        case "gelu":
            return nn.GELU(approximate="tanh")
    kinds: dict[str, Any] = {
        "linear": nn.Linear, "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "layer_norm": nn.LayerNorm,
        "embedding": nn.Embedding, "mean": Mean, "skip_gram": SkipGram,
    }  # fmt: skip
    return kinds[layer.kind](*layer.sizes)


def _torch_parts(work: Workload, dtype: str) -> Any:
    """The model with its initial weights, the loss, the batch, and a copy of the weights."""
    import torch

    x, t, layers = work.data()
    precision = getattr(torch, dtype)
    initial = [torch.from_numpy(array).to(precision) for layer in layers for array in layer]
    model = torch.nn.Sequential(*map(_torch_layer, work.layers)).to(precision)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), initial, strict=True):
            parameter.copy_(value)
    batch = (torch.from_numpy(array) for array in (x, t))
    inputs, targets = (array.to(precision) if array.is_floating_point() else array for array in batch)
    return model, getattr(torch.nn.functional, work.loss), inputs, targets, initial


def torch_contender(work: Workload, dtype: str = "float32") -> Contender:
    """Eager PyTorch with its fused optimizers."""
    import torch

    model, loss_fn, inputs, targets, initial = _torch_parts(work, dtype)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adam": torch.optim.Adam,
        "adamw": partial(torch.optim.AdamW, weight_decay=DECAY),
        "sgd": partial(torch.optim.SGD, momentum=MOMENTUM),
    }
    optimizer = kinds[work.optimizer](model.parameters(), lr=work.lr, fused=True)
    fresh = optimizer.state_dict()

    def step() -> torch.Tensor:
        loss = loss_fn(model(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss  # type: ignore[no-any-return]

    def restart() -> None:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), initial, strict=True):
                parameter.copy_(value)
        optimizer.load_state_dict(fresh)

    return Contender(step, restart)


def torch_compiled_contender(work: Workload) -> Contender:
    """The whole step in one graph of `torch.compile`.

    The update is written out and the gradient taken with `torch.func`. `torch.compile` over `loss.backward()` and
    `optimizer.step()` breaks into several graphs, and took 1.4 to 1.8 times as long.
    """
    import torch

    model, loss_fn, inputs, targets, initial = _torch_parts(work, "float32")
    names = [name for name, _ in model.named_parameters()]
    params = [value.clone() for value in initial]
    m, v = ([torch.zeros_like(p) for p in params] for _ in range(2))
    count = torch.tensor(0.0)

    def loss_of(params: list[torch.Tensor], x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = torch.func.functional_call(model, dict(zip(names, params, strict=True)), (x,))
        return loss_fn(out, t)  # type: ignore[no-any-return]

    gradient = torch.func.grad_and_value(loss_of)

    @torch.compile(fullgraph=True)
    def update(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        grads, loss = gradient(params, x, t)
        if work.optimizer == "sgd":
            for p, g, velocity in zip(params, grads, m, strict=True):
                velocity.mul_(MOMENTUM).add_(g)
                p.sub_(work.lr * velocity)
            return loss
        count.add_(1)
        m_scale, v_scale = 1 / (1 - 0.9**count), 1 / (1 - 0.999**count)
        for p, g, mean, square in zip(params, grads, m, v, strict=True):
            if work.optimizer == "adamw":
                p.mul_(1 - work.lr * DECAY)
            mean.mul_(0.9).add_(g, alpha=0.1)
            square.mul_(0.999).addcmul_(g, g, value=0.001)
            p.sub_(work.lr * (mean * m_scale) / ((square * v_scale).sqrt() + 1e-8))
        return loss

    def restart() -> None:
        for p, value in zip(params, initial, strict=True):
            p.copy_(value)
        for array in (*m, *v, count):
            array.zero_()

    return Contender(partial(update, inputs, targets), restart)


# ---------------------------------------------------------------- JAX
def _jax_layer(layer: Layer, x: Any, arrays: Iterator[Any], keys: Iterator[Any]) -> Any:
    import jax
    import jax.numpy as jnp

    match layer.kind:
        case "linear":
            weight, bias = next(arrays)
            return x @ weight + bias
        case "layer_norm":
            weight, bias = next(arrays)
            return (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + EPS) * weight + bias
        case "embedding":
            (table,) = next(arrays)
            return table[x]
        case "skip_gram":
            words, contexts = next(arrays)
            return (words[x[:, :1]] * contexts[x[:, 1:]]).sum(-1)
        case "mean":
            return x.mean(1)
        case "dropout":
            keep = 1 - layer.sizes[0] / 100
            return jnp.where(jax.random.bernoulli(next(keys), keep, x.shape), x / keep, 0)
        case "residual":
            out = x
            for inner in layer.body:
                out = _jax_layer(inner, out, arrays, keys)
            return x + out
        case "tanh":
            return jnp.tanh(x)
    return getattr(jax.nn, layer.kind)(x)  # its GELU is the approximation by tanh


def _jax_loss(loss: str, z: Any, t: Any) -> Any:
    import jax
    import jax.numpy as jnp

    match loss:
        case "mse_loss":
            return jnp.mean((z - t) ** 2)
        case "cross_entropy":
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), t[:, None], axis=1))
    return jnp.mean(jnp.maximum(z, 0) - z * t + jnp.log1p(jnp.exp(-jnp.abs(z))))


def _jax_optimizer(work: Workload, params: Any, grads: Any, m: Any, v: Any, count: Any) -> Any:
    """The new parameters and moments; SGD has one moment, and its second stays as it is."""
    import jax
    import jax.numpy as jnp

    if work.optimizer == "sgd":
        m = jax.tree.map(lambda m, g: MOMENTUM * m + g, m, grads)
        return jax.tree.map(lambda p, m: p - work.lr * m, params, m), m, v
    if work.optimizer == "adamw":
        params = jax.tree.map(lambda p: p * (1 - work.lr * DECAY), params)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    m_scale, v_scale = 1 / (1 - 0.9**count), 1 / (1 - 0.999**count)
    update = lambda p, m, v: p - work.lr * (m * m_scale) / (jnp.sqrt(v * v_scale) + 1e-8)  # noqa: E731
    return jax.tree.map(update, params, m, v), m, v


def jax_contender(work: Workload) -> Contender:
    """The whole step as one jitted function; parameters and moments are donated, so they are updated in place."""
    import jax
    import jax.numpy as jnp

    x, t, layers = work.data()
    inputs, targets = jnp.asarray(x), jnp.asarray(t)
    kinds = [layer.kind for layer in flat(work.layers) if layer.kind in WITH_ARRAYS]
    randoms = sum(layer.kind == "dropout" for layer in flat(work.layers))

    def loss_fn(params: Any, x: jax.Array, t: jax.Array, key: Any) -> jax.Array:
        arrays, keys = iter(params), iter(jax.random.split(key, randoms) if randoms else ())
        for layer in work.layers:
            x = _jax_layer(layer, x, arrays, keys)
        return _jax_loss(work.loss, x, t)

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, x: jax.Array, t: jax.Array) -> Any:
        params, m, v, count, key = state
        key, now = jax.random.split(key) if randoms else (key, key)
        loss, grads = jax.value_and_grad(loss_fn)(params, x, t, now)
        count = count + 1
        params, m, v = _jax_optimizer(work, params, grads, m, v, count)
        return (params, m, v, count, key), loss

    state: Any = None

    def restart() -> None:
        nonlocal state
        params = [
            tuple(jnp.array(array.T if kind == "linear" else array) for array in arrays)
            for kind, arrays in zip(kinds, layers, strict=True)
        ]
        zeros = partial(jax.tree.map, jnp.zeros_like)
        state = (params, zeros(params), zeros(params), jnp.float32(0), jax.random.key(0))

    def step() -> Any:
        nonlocal state
        state, loss = update(state, inputs, targets)
        return loss.block_until_ready()

    restart()
    return Contender(step, restart)


# ---------------------------------------------------------------- the contenders
OPPONENTS: dict[str, Callable[[Workload], Contender]] = {
    "gradflow-numba-compiled": partial(gradflow_contender, backend="numba", compiled=True),
    "gradflow-numpy-compiled": partial(gradflow_contender, compiled=True),
    "gradflow-numba": partial(gradflow_contender, backend="numba"),
    "gradflow-numpy": gradflow_contender,
    "torch": torch_contender,
    "torch-compile": torch_compiled_contender,
    "jax": jax_contender,
}
PEERS = ("torch", "torch-compile", "jax")
made = cache(lambda opponent, work: OPPONENTS[opponent](work))
"""A contender, built (and compiled) once."""


def begun(opponent: str, work: Workload) -> Step:
    """A training just begun: its memory is there, and it is far from where moments become subnormal.

    Adam's first moment of a weight that has ceased to get a gradient is subnormal after 800 steps, and CPUs take much
    longer over such numbers: 0.7 to 1.1 ms in place of 0.2 for the deep network.
    """
    step, restart = made(opponent, work)
    restart()
    for _ in range(COMPARED):
        step()
    return step


# ---------------------------------------------------------------- do they compute the same?
class DisagreementError(RuntimeError):
    """Two programs that were to be compared do not compute the same."""


def check(name: str, work: Workload, contenders: Mapping[str, Contender]) -> dict[str, float]:
    """Run the first steps of each program; return the worst relative error of its losses against float64.

    The reference is PyTorch in float64. Where a step draws random numbers there is none: losses need only be finite
    numbers, and no error is returned.

    Raises:
        DisagreementError: an error beyond TOLERANCE; such programs are not to be compared.
    """
    losses = {opponent: _first_losses(contender) for opponent, contender in contenders.items()}
    if work.is_random:
        if unsound := [opponent for opponent, found in losses.items() if not np.isfinite(found).all()]:
            raise DisagreementError(f"{', '.join(unsound)}: losses on {name} that are not finite: {losses}.")
        return {}
    truth = _first_losses(torch_contender(work, dtype="float64"))
    errors = {opponent: float(np.abs(found / truth - 1).max()) for opponent, found in losses.items()}
    for opponent, error in errors.items():
        if not error <= TOLERANCE:
            raise DisagreementError(
                f"{opponent} computes something else on {name}: its first {COMPARED} losses are {losses[opponent]}, "
                f"those of float64 {truth} (relative tolerance {TOLERANCE:g}). There is nothing to compare."
            )
    return errors


def _first_losses(contender: Contender) -> np.ndarray:
    """The losses of the first steps, from the initial weights."""
    contender.restart()
    return np.array([contender.step().item() for _ in range(COMPARED)])
