"""A training step in JAX: a multi-layer perceptron with ReLU, cross entropy, Adam; jitted, with its state donated."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measured


def forward(params: Any, x: jax.Array) -> jax.Array:
    *hidden, (weight, bias) = params
    for w, b in hidden:
        x = jax.nn.relu(x @ w + b)
    return x @ weight + bias


def loss_fn(params: Any, x: jax.Array, t: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(forward(params, x)), t[:, None], axis=1))


def start(sizes: list[int]) -> Any:
    params = [(jnp.array(weight.T), jnp.array(bias)) for weight, bias in measured.weights(sizes)]
    zeros = partial(jax.tree.map, jnp.zeros_like)
    return params, zeros(params), zeros(params), jnp.float32(0)


@partial(jax.jit, donate_argnums=0)
def step(state: Any, x: jax.Array, t: jax.Array) -> Any:
    params, m, v, count = state
    loss, grads = jax.value_and_grad(loss_fn)(params, x, t)
    count = count + 1
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
    rate, scale = measured.LR / (1 - 0.9**count), 1 / (1 - 0.999**count)
    params = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v * scale) + 1e-8), params, m, v)
    return (params, m, v, count), loss
