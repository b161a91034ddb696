"""The five training steps that are timed, each written as a user of gradflow, PyTorch or JAX would write it.

Every step is forward, backward and Adam with lr 1e-3 in float32, from the same initial weights on the same batch, and
returns the loss before the update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

import gradflow as gf

Step = Callable[[], Any]
LR = 1e-3
COMPARED = 5  # steps: small networks agree for thousands, the deep one is chaotic
TOLERANCE = 1e-4  # relative, of each loss against float64


class Batch(NamedTuple):
    """Input and target, and for each layer a weight (out, in) and a bias (out,)."""

    x: np.ndarray
    t: np.ndarray
    layers: list[tuple[np.ndarray, np.ndarray]]


class Workload(NamedTuple):
    """A multi-layer perceptron and how it is trained; `target` is the ratio to eager PyTorch that is aimed at."""

    sizes: tuple[int, ...]
    activation: str
    loss: str
    batch: int
    target: float

    def data(self) -> Batch:
        """The same random arrays at every call."""
        rng = np.random.default_rng(0)
        n_in, n_out = self.sizes[0], self.sizes[-1]
        gain = 2 if self.activation == "relu" else 1
        layers = [
            (rng.normal(0, np.sqrt(gain / n), (m, n)).astype(np.float32), np.zeros(m, np.float32))
            for n, m in pairwise(self.sizes)
        ]
        x = rng.standard_normal((self.batch, n_in)).astype(np.float32)
        t = x[:, :1] * x[:, 1:] if self.loss == "mse_loss" else rng.integers(0, n_out, self.batch)
        return Batch(x, t, layers)

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.sizes))} {self.activation}, {self.loss}, batch {self.batch}"


WORKLOADS = {
    "tiny": Workload((2, 10, 1), "tanh", "mse_loss", 64, 0.16),
    "wide": Workload((2, 100, 1), "tanh", "mse_loss", 256, 0.2),
    "mnist": Workload((784, 120, 120, 10), "relu", "cross_entropy", 128, 0.75),
    "deep": Workload((64, *[64] * 20, 10), "relu", "cross_entropy", 64, 0.45),
    "big": Workload((784, 1024, 1024, 10), "relu", "cross_entropy", 512, 1.0),
}


# ---------------------------------------------------------------- gradflow
class Training(NamedTuple):
    """The parts of a gradflow training step."""

    model: gf.nn.Module
    loss_fn: Callable[..., gf.Tensor]
    optimizer: gf.optim.Adam
    x: gf.Tensor
    t: gf.Tensor


def gradflow_training(work: Workload, lr: float = LR) -> Training:
    x, t, layers = work.data()
    activation = {"tanh": gf.nn.Tanh, "relu": gf.nn.ReLU}[work.activation]
    model = gf.nn.MLP(work.sizes, activation)
    with gf.no_grad():
        for parameter, value in zip(model.parameters(), (array for layer in layers for array in layer), strict=True):
            parameter[...] = value
    return Training(model, getattr(gf, work.loss), gf.optim.Adam(model.parameters(), lr=lr), gf.tensor(x), gf.tensor(t))


def gradflow_step(work: Workload, lr: float = LR) -> Step:
    model, loss_fn, optimizer, x, t = gradflow_training(work, lr)

    def step() -> gf.Tensor:
        loss = loss_fn(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


# ---------------------------------------------------------------- PyTorch
def torch_step(work: Workload, lr: float = LR, dtype: str = "float32") -> Step:
    """Eager PyTorch with its fused Adam."""
    import torch

    x, t, layers = work.data()
    modules: list[torch.nn.Module] = []
    for weight, bias in layers:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        modules += [linear, {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[work.activation]()]
    precision = getattr(torch, dtype)
    model = torch.nn.Sequential(*modules[:-1]).to(precision)
    loss_fn: Callable[..., torch.Tensor] = getattr(torch.nn.functional, work.loss)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    inputs, targets = torch.from_numpy(x).to(precision), torch.from_numpy(t)
    if targets.is_floating_point():
        targets = targets.to(precision)

    def step() -> torch.Tensor:
        loss = loss_fn(model(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss

    return step


# ---------------------------------------------------------------- JAX
@cache
def _jax_update(work: Workload, lr: float) -> Callable[..., Any]:
    """The whole step as one jitted function; parameters and moments are donated, so they are updated in place."""
    import jax
    import jax.numpy as jnp

    activation = {"tanh": jnp.tanh, "relu": jax.nn.relu}[work.activation]

    def loss_fn(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
        *hidden, (weight, bias) = params
        for w, b in hidden:
            x = activation(x @ w + b)
        x = x @ weight + bias
        if work.loss == "mse_loss":
            return jnp.mean((x - t) ** 2)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], axis=1))

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, x: jax.Array, t: jax.Array) -> Any:
        params, m, v, count = state
        loss, grads = jax.value_and_grad(loss_fn)(params, x, t)
        count = count + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        m_scale, v_scale = 1 / (1 - 0.9**count), 1 / (1 - 0.999**count)
        params = jax.tree.map(lambda p, m, v: p - lr * (m * m_scale) / (jnp.sqrt(v * v_scale) + 1e-8), params, m, v)
        return (params, m, v, count), loss

    return update


def jax_step(work: Workload, lr: float = LR) -> Step:
    import jax
    import jax.numpy as jnp

    x, t, layers = work.data()
    update = _jax_update(work, lr)
    params = [(jnp.array(weight.T), jnp.array(bias)) for weight, bias in layers]
    zeros = partial(jax.tree.map, jnp.zeros_like)
    state = (params, zeros(params), zeros(params), jnp.float32(0))
    inputs, targets = jnp.asarray(x), jnp.asarray(t)

    def step() -> Any:
        nonlocal state
        state, loss = update(state, inputs, targets)
        return loss.block_until_ready()

    return step


OPPONENTS: dict[str, Callable[[Workload], Step]] = {"gradflow": gradflow_step, "torch": torch_step, "jax": jax_step}


def begun(opponent: str, work: Workload) -> Step:
    """A training just begun: its memory is there, and it is far from where moments become subnormal.

    Adam's first moment of a weight that has ceased to get a gradient is subnormal after 800 steps, and CPUs take much
    longer over such numbers: 0.7 to 1.1 ms in place of 0.2 for the deep network.
    """
    step = OPPONENTS[opponent](work)
    for _ in range(COMPARED):
        step()
    return step


# ---------------------------------------------------------------- do they compute the same?
class DisagreementError(RuntimeError):
    """Two programs that were to be compared do not compute the same."""


def check(name: str, steps: Mapping[str, Step]) -> dict[str, float]:
    """Run the first steps of each program; return the worst relative error of its losses against float64.

    The reference is PyTorch in float64.

    Raises:
        DisagreementError: an error beyond TOLERANCE; such programs are not to be compared.
    """
    reference = torch_step(WORKLOADS[name], dtype="float64")
    truth = np.array([reference().item() for _ in range(COMPARED)])
    errors = {}
    for opponent, step in steps.items():
        losses = np.array([step().item() for _ in range(COMPARED)])
        errors[opponent] = float(np.abs(losses / truth - 1).max())
        if not errors[opponent] <= TOLERANCE:
            raise DisagreementError(
                f"{opponent} computes something else on {name}: its first {COMPARED} losses are {losses}, "
                f"those of float64 {truth} (relative tolerance {TOLERANCE:g}). There is nothing to compare."
            )
    return errors
