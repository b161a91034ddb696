"""grad, vjp, jvp, hvp, jacobian, hessian and custom_vjp against calculus, finite differences, JAX and PyTorch."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.compiler import trace
from gradflow.tensor import Tensor

rng = np.random.default_rng(0)


def t64(values: Any, requires_grad: bool = False) -> Tensor:
    return gf.tensor(np.asarray(values, np.float64), requires_grad=requires_grad)


def close(a: Any, b: Any, rtol: float = 1e-12, atol: float = 1e-13) -> None:
    a, b = (np.asarray(t.detach() if hasattr(t, "detach") else t) for t in (a, b))
    assert a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


def text(caught: Any) -> str:
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- one-line calculus
# f, then f′, f″, f‴, f⁗ as a table of derivatives has them
CALCULUS: dict[str, tuple[Callable[..., Any], ...]] = {
    "x⁵": (lambda x: x**5, lambda x: 5 * x**4, lambda x: 20 * x**3, lambda x: 60 * x**2, lambda x: 120 * x),
    "eˣ": (gf.exp, np.exp, np.exp, np.exp, np.exp),
    "ln x": (gf.log, lambda x: 1 / x, lambda x: -(x**-2), lambda x: 2 * x**-3, lambda x: -6 * x**-4),
    "√x": (
        gf.sqrt,
        lambda x: x**-0.5 / 2,
        lambda x: -(x**-1.5) / 4,
        lambda x: 3 * x**-2.5 / 8,
        lambda x: -15 * x**-3.5 / 16,
    ),
    "1/x": (lambda x: 1 / x, lambda x: -(x**-2), lambda x: 2 * x**-3, lambda x: -6 * x**-4, lambda x: 24 * x**-5),
    "tanh x": (
        gf.tanh,
        lambda x: 1 - np.tanh(x) ** 2,
        lambda x: -2 * np.tanh(x) * (1 - np.tanh(x) ** 2),
        lambda x: (1 - np.tanh(x) ** 2) * (6 * np.tanh(x) ** 2 - 2),
        lambda x: (1 - np.tanh(x) ** 2) * np.tanh(x) * (16 - 24 * np.tanh(x) ** 2),
    ),
    "x eˣ": (lambda x: x * gf.exp(x), *(lambda x, n=n: (x + n) * np.exp(x) for n in (1, 2, 3, 4))),
    "2ˣ": (lambda x: 2.0**x, *(lambda x, n=n: 2**x * math.log(2) ** n for n in (1, 2, 3, 4))),
}


def nth(f: Callable[..., Any], n: int, by: str) -> Callable[..., Any]:
    """The n-th derivative of a function of one number, by one transform or by turns."""
    ways: dict[str, Callable[[Any], Any]] = {
        "grad": gf.grad,
        "jvp": lambda g: lambda x: gf.jvp(g, (x,), (gf.ones_like(x),))[1],
        "vjp": lambda g: lambda x: gf.vjp(g, x)[1](gf.ones_like(x))[0],
        "jacobian": gf.jacobian,
    }
    names = list(ways)
    for i in range(n):
        f = ways[by if by in ways else names[(i + len(by)) % len(names)]](f)
    return f


@pytest.mark.parametrize("by", ["grad", "jvp", "vjp", "jacobian", "turns", "other turns"])
@pytest.mark.parametrize("name", CALCULUS)
def test_derivatives_to_fourth_order(name: str, by: str) -> None:
    f, *derivatives = CALCULUS[name]
    x = t64(0.7)
    for n, expected in enumerate(derivatives, 1):
        found = nth(f, n, by)(x)
        assert (found.shape, found.dtype, found.requires_grad) == ((), np.float64, False)
        close(found, expected(0.7), rtol=1e-11)
    connected = nth(f, 3, by)(t64(0.7, requires_grad=True))
    connected.backward()


def test_hessian_of_hessian() -> None:
    """∇²‖z‖⁴ = 4 ‖z‖² I + 8 z zᵀ; its entries add up to 8 (Σ z)² + 4 n ‖z‖²."""
    found = gf.hessian(lambda y: gf.hessian(lambda z: (z**2).sum() ** 2)(y).sum())(t64([0.5, 2.0]))
    close(found, np.full((2, 2), 16.0) + 16 * np.eye(2))


# ---------------------------------------------------------------------------------------- the same in JAX and PyTorch
Function = Callable[[Any, Any], Any]

A = rng.normal(size=(4, 4))
SCALAR: dict[str, Function] = {
    "polynomial": lambda lib, x: (x**3 * x.sum()).sum() + x[0] * x[1] ** 2,
    "softmax": lambda lib, x: (lib.exp(x) / lib.exp(x).sum() * lib.tanh(x)).sum(),
    "logsumexp": lambda lib, x: lib.log(lib.exp(x * 2).sum()) ** 2,
    "norm": lambda lib, x: lib.sqrt((x * x).sum() + 1) / x.sum() ** 2,
    "matrices": lambda lib, x: lib.tanh(x.reshape(2, 2) @ x.reshape(2, 2)).sum(),
    "quadratic": lambda lib, x: x @ lib.tensor(A) @ x / 2 + lib.exp(-x[3]),
    "where": lambda lib, x: lib.where(x > 0, x**3, -x * x[0] ** 2).sum(),
    "linear": lambda lib, x: (x * 3).sum(),
    "extremes": lambda lib, x: lib.max(x) ** 2 * lib.min(x) + abs(x).sum() * x[1],
    "gathered": lambda lib, x: (x[[0, 2, 2]] ** 2 * x[1:]).sum(),
}
VECTOR: dict[str, Function] = {
    "elementwise": lambda lib, x: lib.tanh(x) * x,
    "matrix": lambda lib, x: lib.tensor(A) @ x**2,
    "outer": lambda lib, x: x.reshape(4, 1) * lib.exp(x),
    "scalar": lambda lib, x: (x**2).sum(),
    "longer": lambda lib, x: lib.concatenate([x * 2, x[:2] ** 3]),
    "normalized": lambda lib, x: x / lib.sqrt((x * x).sum()),
}


class Gradflow:
    tanh, exp, log, sqrt, where, max, min = gf.tanh, gf.exp, gf.log, gf.sqrt, gf.where, gf.max, gf.min
    tensor, concatenate = staticmethod(gf.tensor), staticmethod(gf.concatenate)


@pytest.fixture(scope="module")
def jax() -> Any:
    jax = pytest.importorskip("jax")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with jax.enable_x64(True):
            yield jax


def transforms_of(lib: str, jax: Any = None) -> dict[str, Callable[..., Any]]:
    """Each transform as a function of (f, x, tangent, cotangent) that gives arrays."""
    if lib == "gradflow":
        return {
            "grad": lambda f, x, u, v: gf.grad(f)(x),
            "value_and_grad": lambda f, x, u, v: gf.value_and_grad(f)(x),
            "hvp": lambda f, x, u, v: gf.hvp(f, x, u),
            "hessian": lambda f, x, u, v: gf.hessian(f)(x),
            "third": lambda f, x, u, v: gf.jacobian(gf.hessian(f))(x),
            "fourth": lambda f, x, u, v: gf.grad(lambda y: gf.grad(lambda z: gf.hvp(f, z, u) @ u)(y) @ u)(x),
            "jacobian": lambda f, x, u, v: gf.jacobian(f)(x),
            "jvp": lambda f, x, u, v: gf.jvp(f, (x,), (u,)),
            "vjp": lambda f, x, u, v: (gf.vjp(f, x)[0], gf.vjp(f, x)[1](v)[0]),
        }
    if lib == "jax":
        grad, jacobian, jvp, vjp, hessian = jax.grad, jax.jacrev, jax.jvp, jax.vjp, jax.hessian
        value_and_grad = jax.value_and_grad
    else:
        from torch.func import grad, hessian, jacrev, jvp, vjp

        jacobian, value_and_grad = jacrev, lambda f: lambda x: (f(x), grad(f)(x))
    return {
        "grad": lambda f, x, u, v: grad(f)(x),
        "value_and_grad": lambda f, x, u, v: value_and_grad(f)(x),
        "hvp": lambda f, x, u, v: grad(lambda y: grad(f)(y) @ u)(x),
        "hessian": lambda f, x, u, v: hessian(f)(x),
        "third": lambda f, x, u, v: jacobian(jacobian(jacobian(f)))(x),
        "fourth": lambda f, x, u, v: grad(lambda y: grad(lambda z: grad(lambda w: grad(f)(w) @ u)(z) @ u)(y) @ u)(x),
        "jacobian": lambda f, x, u, v: jacobian(f)(x),
        "jvp": lambda f, x, u, v: jvp(f, (x,), (u,)),
        "vjp": lambda f, x, u, v: (vjp(f, x)[0], vjp(f, x)[1](v)[0]),
    }


CASES = [(name, transform) for name in SCALAR for transform in ("grad", "value_and_grad", "hvp", "hessian", "third")]
CASES += [(name, "fourth") for name in ("polynomial", "softmax", "norm", "where")]
CASES += [(name, transform) for name in VECTOR for transform in ("jacobian", "jvp", "vjp")]


def compare(name: str, transform: str, lib: Any, make: Callable[[Any], Any], theirs: Callable[..., Any]) -> None:
    f = SCALAR.get(name) or VECTOR[name]
    x, u = np.array([0.3, -1.2, 2.0, 0.7]), rng.normal(size=4)
    v = rng.normal(size=f(Gradflow, t64(x)).shape)
    ours = transforms_of("gradflow")[transform](lambda y: f(Gradflow, y), t64(x), t64(u), t64(v))
    expected = theirs(lambda y: f(lib, y), make(x), make(u), make(v))
    for a, b in zip(*((r if isinstance(r, tuple) else (r,)) for r in (ours, expected)), strict=True):
        assert not a.requires_grad
        close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("name", "transform"), CASES)
def test_transforms_are_pytorchs(name: str, transform: str) -> None:
    torch = pytest.importorskip("torch")

    class Theirs:
        tanh, exp, log, sqrt, where, max, min = (
            torch.tanh, torch.exp, torch.log, torch.sqrt, torch.where, torch.max, torch.min,
        )  # fmt: skip
        tensor, concatenate = staticmethod(torch.tensor), staticmethod(torch.cat)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compare(name, transform, Theirs, torch.tensor, transforms_of("torch")[transform])


# JAX compiles every operation: a choice, of which each takes a fifth of a second
JAX_CASES = [(name, transform) for name in ("softmax", "where", "matrices") for transform in ("grad", "hvp")]
JAX_CASES += [
    ("logsumexp", "hessian"),
    *((name, transform) for name, transform in CASES if name in VECTOR),
]


@pytest.mark.parametrize(("name", "transform"), JAX_CASES)
def test_transforms_are_jaxs(jax: Any, name: str, transform: str) -> None:
    class Theirs:
        tanh, exp, log, sqrt, where, max, min = (
            jax.numpy.tanh, jax.numpy.exp, jax.numpy.log, jax.numpy.sqrt, jax.numpy.where, jax.numpy.max, jax.numpy.min,
        )  # fmt: skip
        tensor, concatenate = staticmethod(jax.numpy.asarray), staticmethod(jax.numpy.concatenate)

    compare(name, transform, Theirs, jax.numpy.asarray, transforms_of("jax", jax)[transform])


# ------------------------------------------------------------------------------------------------- identities, drawn
ELEMENTS = [gf.tanh, gf.exp, gf.sigmoid, lambda x: x * x, lambda x: gf.softmax(x, axis=-1), lambda x: x / (1 + x * x)]
SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def drawn(kinds: list[int], seed: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A function of two tensors of one shape (…, n) with values of shape (n, …)."""

    def f(x: Tensor, y: Tensor) -> Tensor:
        out = x * gf.sigmoid(y) + y
        for i, kind in enumerate(kinds):
            step = ELEMENTS[kind] if x.ndim and x.shape[-1] or kind != 4 else gf.tanh
            out = step(out * 0.5) + (x if i % 2 else out.mean() if out.size else out)
        axes = tuple(np.roll(range(out.ndim), 1).tolist())
        return gf.permute_dims(out, axes) if out.ndim else out

    return f


@given(kinds=st.lists(st.integers(0, 5), max_size=4), shape=SHAPES, seed=st.integers(0, 999))
def test_jvp_and_vjp_are_transposes(kinds: list[int], shape: tuple[int, ...], seed: int) -> None:
    """⟨v, J u⟩ = ⟨Jᵀ v, u⟩, J u by finite differences, and both linear."""
    draw = np.random.default_rng(seed)
    f = drawn(kinds, seed)
    x, y, u, w = (t64(draw.normal(size=shape)) for _ in range(4))
    out, pushed = gf.jvp(f, (x, y), (u, w))
    again, pullback = gf.vjp(f, x, y)
    close(out, again)
    close(out, f(x, y))
    v = t64(draw.normal(size=out.shape))
    gx, gy = pullback(v)
    assert (gx.shape, gy.shape, pushed.shape) == (shape, shape, out.shape)
    scale = 1 + float(np.abs(pushed.numpy()).sum())
    assert abs((v * pushed).sum().item() - (gx * u).sum().item() - (gy * w).sum().item()) < 1e-12 * scale * 10
    h = 1e-6
    difference = (f(x + u * h, y + w * h) - f(x - u * h, y - w * h)) / (2 * h)
    np.testing.assert_allclose(pushed.numpy(), difference.numpy(), rtol=1e-6, atol=1e-7)
    twice = gf.jvp(f, (x, y), (u * 2, w * 2))[1]
    close(twice, pushed * 2, rtol=1e-12)
    close(pullback(v * 2)[0], gx * 2, rtol=1e-12)


@given(kinds=st.lists(st.integers(0, 5), max_size=3), n=st.integers(1, 4), seed=st.integers(0, 999))
def test_hessians_are_symmetric_and_hvp_multiplies_by_them(kinds: list[int], n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    f = drawn(kinds, seed)
    x, y, v = (t64(draw.normal(size=n)) for _ in range(3))

    def loss(t: Tensor) -> Tensor:
        return (f(t, y) ** 2).sum()

    matrix = gf.hessian(loss)(x).numpy()
    scale = np.abs(matrix).max() + 1
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-12 * scale)
    np.testing.assert_allclose(gf.hvp(loss, x, v).numpy(), matrix @ v.numpy(), atol=1e-11 * scale)
    pushed = gf.jvp(gf.grad(loss), (x,), (v,))[1]
    np.testing.assert_allclose(pushed.numpy(), matrix @ v.numpy(), atol=1e-11 * scale)
    columns = [gf.jvp(gf.grad(loss), (x,), (t64(e),))[1].numpy() for e in np.eye(n)]
    np.testing.assert_allclose(np.stack(columns, axis=1), matrix, atol=1e-11 * scale)


@given(shape=SHAPES, out=st.sampled_from(["same", "sum", "empty", "matrix"]))
def test_shapes_of_jacobians(shape: tuple[int, ...], out: str) -> None:
    def f(x: Tensor) -> Tensor:
        if out == "same":
            return x * x
        if out == "sum":
            return (x * x).sum()
        return gf.zeros((0, 2), dtype=gf.float64) * x.sum() if out == "empty" else x.sum() * gf.ones((2, 1))

    x = t64(rng.normal(size=shape))
    found = gf.jacobian(f)(x)
    assert found.shape == f(x).shape + shape
    assert found.dtype == np.float64
    if out == "same":
        expected = np.zeros((x.size, x.size))
        np.fill_diagonal(expected, 2 * x.numpy().reshape(-1))
        assert np.array_equal(found.numpy().reshape(x.size, x.size), expected)
    second = gf.hessian(lambda t: (t * t * t).sum())(x)
    assert second.shape == shape + shape


# ------------------------------------------------------------------------------------------- nested: whose derivative
def test_perturbations_are_not_confused() -> None:
    """d/dx (x · d/dy (x + y)) = 1: the inner derivative must not see the outer variable's."""
    one = t64(1.0)
    assert gf.grad(lambda x: x * gf.grad(lambda y: x + y)(one))(one).item() == 1.0
    assert gf.grad(lambda x: x * gf.grad(lambda y: x * y)(t64(2.0)))(t64(3.0)).item() == 6.0
    assert gf.grad(lambda x: x * gf.grad(lambda y: x * y)(x))(t64(3.0)).item() == 6.0
    assert gf.grad(lambda x: gf.grad(lambda y: x * y * y)(x) * 1.0)(t64(3.0)).item() == 12.0

    def push(f: Callable[[Any], Any], x: Any) -> Any:
        return gf.jvp(f, (x,), (gf.ones_like(x),))[1]

    assert push(lambda x: x * push(lambda y: x + y, one), one).item() == 1.0
    assert push(lambda x: x * push(lambda y: x * y, t64(2.0)), t64(3.0)).item() == 6.0
    assert gf.grad(lambda x: x * push(lambda y: x + y, one))(one).item() == 1.0
    assert push(lambda x: x * gf.grad(lambda y: x + y)(one), one).item() == 1.0
    assert gf.hessian(lambda x: x * gf.hessian(lambda y: x * y**3)(x))(t64(2.0)).item() == 72.0


def test_a_closed_over_parameter_gets_its_derivative() -> None:
    """Each transform's result leads on to whatever tensors the function closed over."""
    x, u = t64([1.0, 2.0]), t64([3.0, -1.0])

    def f(w: Tensor, y: Tensor) -> Tensor:
        return (w * y**3).sum() * w[0]

    uses: dict[str, Callable[[Tensor], Tensor]] = {
        "grad": lambda w: gf.grad(lambda y: f(w, y))(x),
        "value": lambda w: gf.value_and_grad(lambda y: f(w, y))(x)[0],
        "vjp": lambda w: gf.vjp(lambda y: w * y**2, x)[1](u)[0],
        "vjp's value": lambda w: gf.vjp(lambda y: w * y**2, x)[0],
        "jvp": lambda w: gf.jvp(lambda y: w * y**2, (x,), (u,))[1],
        "jvp's value": lambda w: gf.jvp(lambda y: w * y**2, (x,), (u,))[0],
        "hvp": lambda w: gf.hvp(lambda y: f(w, y), x, u),
        "jacobian": lambda w: gf.jacobian(lambda y: w * y**2 * w.sum())(x),
        "hessian": lambda w: gf.hessian(lambda y: f(w, y))(x),
        "seed": lambda w: gf.vjp(lambda y: y**2, x)[1](w)[0],
        "tangent": lambda w: gf.jvp(lambda y: y**2, (x,), (w,))[1],
        "argument": gf.grad(lambda y: (y**3).sum()),
        "argument twice": lambda w: gf.grad(lambda y: (y**3 * w).sum())(w),
    }
    h = 1e-6
    for name, use in uses.items():
        w = t64([0.5, -1.5], requires_grad=True)
        out = use(w)
        assert out.requires_grad, name
        out.sum().backward()
        assert x.grad is None
        expected = [
            (use(w.detach() + t64(e) * h).sum().item() - use(w.detach() - t64(e) * h).sum().item()) / (2 * h)
            for e in np.eye(2)
        ]
        np.testing.assert_allclose(w.grad.numpy(), expected, rtol=1e-7, atol=1e-7, err_msg=name)  # type: ignore[union-attr]
        with gf.no_grad():
            assert not use(w).requires_grad, name


def test_transforms_leave_grad_alone() -> None:
    w, x = t64([1.0, 2.0], requires_grad=True), t64([3.0, 4.0], requires_grad=True)
    f = lambda y: (w * y**3).sum()  # noqa: E731
    gf.grad(f)(x)
    gf.hessian(f)(x)
    gf.jvp(f, (x,), (x,))
    gf.vjp(f, x)[1](t64(1.0))
    assert w.grad is None
    assert x.grad is None


def test_a_derivative_inside_a_loss_that_is_trained() -> None:
    """A gradient penalty, λ (‖∇ₓ f(x)‖ − 1)², against PyTorch's double backward, for twenty steps."""
    torch = pytest.importorskip("torch")
    gf.manual_seed(0)
    model = nn.MLP([3, 8, 1], nn.Tanh).to(gf.float64)
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()
    with torch.no_grad():
        for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
            q.copy_(torch.tensor(p.numpy().copy()))
    ours_step = optim.Adam(model.parameters(), lr=0.02)
    theirs_step = torch.optim.Adam(theirs.parameters(), lr=0.02)
    x = rng.normal(size=(10, 3))
    for _ in range(20):
        slope = gf.grad(lambda y: model(y).sum())(t64(x))
        loss = model(t64(x)).mean() + 10 * ((gf.sqrt((slope**2).sum(axis=1)) - 1) ** 2).mean()
        ours_step.zero_grad()
        loss.backward()
        ours_step.step()

        y = torch.tensor(x, requires_grad=True)
        (g,) = torch.autograd.grad(theirs(y).sum(), y, create_graph=True)
        expected = theirs(torch.tensor(x)).mean() + 10 * ((g.pow(2).sum(1).sqrt() - 1) ** 2).mean()
        theirs_step.zero_grad()
        expected.backward()
        theirs_step.step()
        close(loss, expected, rtol=1e-9)
    for p, q in zip(model.parameters(), theirs.parameters(), strict=True):
        close(p, q, rtol=1e-7)


def test_networks_as_functions_of_their_weights() -> None:
    torch = pytest.importorskip("torch")
    model = nn.MLP([3, 4, 2], nn.Tanh).to(gf.float64)
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    theirs.load_state_dict({k: torch.tensor(v.numpy().copy()) for k, v in model.state_dict().items()})
    x = rng.normal(size=(5, 3))
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def loss(w: Any) -> Tensor:
        return (gf.functional_call(model, w, t64(x)) ** 2).sum()

    def expected_loss(w: Any) -> Any:
        return (torch.func.functional_call(theirs, w, torch.tensor(x)) ** 2).sum()

    ours = gf.grad(loss)(weights)
    expected = torch.func.grad(expected_loss)(dict(theirs.named_parameters()))
    assert ours.keys() == expected.keys()
    for name in ours:
        close(ours[name], expected[name], rtol=1e-11)
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    matrix = gf.hessian(loss)(vector)
    assert matrix.shape == (26, 26)
    close(matrix, matrix.mT, atol=1e-10)
    assert all(p.grad is None for p in model.parameters())


# --------------------------------------------------------------------------------------------- containers and arguments
class Pair(NamedTuple):
    a: Any
    b: Any


def test_containers_come_back_in_their_structure() -> None:
    def f(tree: Any) -> Tensor:
        return (tree["w"][0] * tree["w"][1].a).sum() + tree["b"] ** 2 * tree["w"][1].b

    x = {"w": [t64([1.0, 2.0]), Pair(t64([3.0, 4.0]), t64(2.0))], "b": t64(5.0)}
    value, g = gf.value_and_grad(f)(x)
    assert value.item() == 61.0
    assert list(g) == ["w", "b"]
    assert isinstance(g["w"], list)
    assert isinstance(g["w"][1], Pair)
    close(g["w"][0], [3.0, 4.0])
    close(g["w"][1].a, [1.0, 2.0])
    close(g["w"][1].b, 25.0)
    close(g["b"], 20.0)
    _, pullback = gf.vjp(lambda t: {"y": t["w"][0] * t["b"], "z": (t["b"],)}, x)
    (g,) = pullback({"z": (t64(100.0),), "y": t64([1.0, 10.0])})  # in another order than the outputs
    close(g["w"][0], [5.0, 50.0])
    close(g["b"], 121.0)
    close(g["w"][1].b, 0.0)
    swapped = {"b": x["b"], "w": x["w"]}
    out, pushed = gf.jvp(lambda t: [t["w"][0] * t["b"]], (x,), (swapped,))
    assert isinstance(out, list)
    close(pushed[0], [10.0, 20.0])
    found = gf.jacobian(lambda t: t["w"][0] * t["b"])(x)
    close(found["w"][0], np.eye(2) * 5)
    close(found["b"], [1.0, 2.0])
    assert found["w"][1].a.shape == (2, 2)


def test_argnums() -> None:
    f = lambda x, y, z: (x * y**2 + z).sum()  # noqa: E731
    x, y, z = t64([1.0]), t64([2.0]), t64([3.0])
    close(gf.grad(f)(x, y, z), [4.0])
    close(gf.grad(f, 1)(x, y, z), [4.0])
    close(gf.grad(f, argnums=-1)(x, y, z), [1.0])
    found = gf.grad(f, argnums=(2, 0))(x, y, z)
    assert isinstance(found, tuple)
    assert [g.item() for g in found] == [1.0, 4.0]
    value, (g,) = gf.value_and_grad(f, argnums=(1,))(x, y, z)
    assert (value.item(), g.item()) == (7.0, 4.0)
    close(gf.grad(f, argnums=[0, 1])(x, y, z=z)[1], [4.0])
    assert gf.grad(f, np.int64(1))(x, y, z).item() == 4.0  # type: ignore[arg-type]
    close(gf.jacobian(lambda a, b: a * b, argnums=1)(x, y), [[1.0]])
    close(gf.hessian(lambda a, b: (a * b**3).sum(), argnums=1)(x, y), [[12.0]])
    for wrong in (3, -4, (0, 3)):
        with pytest.raises(errors.ArgumentError, match="for a call with 3 positional arguments") as caught:
            gf.grad(f, wrong)(x, y, z)
        assert "gf.grad(f, argnums=0)(x)" in text(caught)
    with pytest.raises(errors.ArgumentError, match="names an argument twice"):
        gf.grad(f, (0, -3))(x, y, z)
    with pytest.raises(errors.ArgumentError, match="0 positional arguments"):
        gf.grad(lambda x: x)(x=x)


def test_other_arguments_pass_through() -> None:
    def f(x: Tensor, power: int, *, scale: float = 1.0, labels: Any = None) -> Tensor:
        assert labels is None or labels.dtype == np.int64
        return (x**power * scale).sum()

    x = t64([1.0, 2.0])
    close(gf.grad(f)(x, 3), [3.0, 12.0])
    close(gf.grad(f)(x, 3, scale=2.0, labels=gf.tensor([1, 2])), [6.0, 24.0])
    assert gf.grad(f).__name__ == "f"
    assert gf.value_and_grad(f).__wrapped__ is f


def test_numbers_and_arrays_as_arguments() -> None:
    assert gf.grad(lambda x: x**2)(3.0).item() == 6.0
    assert gf.grad(lambda x: x**2)(3.0).dtype == np.float32
    close(gf.grad(lambda x: (x**2).sum())(np.array([1.0, 2.0])), [2.0, 4.0])
    close(gf.vjp(lambda x: x * 2, np.ones(2))[1](np.array([1.0, 3.0]))[0], [2.0, 6.0])
    close(gf.jvp(lambda x: x * 2, (np.ones(2),), (np.array([1.0, 3.0]),))[1], [2.0, 6.0])
    close(gf.hvp(lambda x: (x**3).sum(), np.ones(2), np.array([1.0, 3.0])), [6.0, 18.0])
    with pytest.raises(errors.DTypeError, match="int64 tensor cannot require grad"):
        gf.grad(lambda x: x.sum())(gf.tensor([1, 2]))


def test_dtypes_are_kept() -> None:
    for dtype in (gf.float32, gf.float64):
        x = gf.ones(3, dtype=dtype)
        assert gf.grad(lambda y: (y**2).sum().astype(gf.float64))(x).dtype == dtype
        assert gf.hessian(lambda y: (y**3).sum())(x).dtype == dtype
        assert gf.jacobian(lambda y: y.astype(gf.float64) * 2)(x).dtype == dtype
        assert gf.vjp(gf.exp, x)[1](gf.ones(3, dtype=gf.float64))[0].dtype == dtype
        assert gf.jvp(gf.exp, (x,), (gf.ones(3, dtype=gf.float64),))[1].dtype == dtype
        assert gf.jvp(lambda y: y.astype(gf.float64), (x,), (x,))[1].dtype == gf.float64
        assert gf.hvp(lambda y: gf.exp(y).sum(), x, x).dtype == dtype


def test_has_aux() -> None:
    def f(x: Tensor) -> tuple[Tensor, Any]:
        return (x**3).sum(), {"twice": x * 2, "note": "text"}

    x = t64([1.0, 2.0])
    (value, aux), g = gf.value_and_grad(f, has_aux=True)(x)
    assert value.item() == 9.0
    close(g, [3.0, 12.0])
    close(aux["twice"], [2.0, 4.0])
    assert aux["note"] == "text"
    assert not aux["twice"].requires_grad  # the graph it belonged to is gone
    g, aux = gf.grad(f, has_aux=True)(x)
    close(g, [3.0, 12.0])
    w = t64(3.0, requires_grad=True)
    _, aux = gf.grad(lambda y: ((w * y).sum(), w * y), has_aux=True)(x)
    aux.sum().backward()  # leads on to what the function closed over
    assert w.grad.item() == 3.0  # type: ignore[union-attr]
    for wrong in (lambda y: y.sum(), lambda y: (y.sum(), 1, 2)):
        with pytest.raises(errors.DTypeError, match="has_aux=True, but f did not return a pair"):
            gf.grad(wrong, has_aux=True)(x)


# ---------------------------------------------------------------------------------- what is not connected, modes, reuse
def test_unconnected_inputs_have_zero_derivatives() -> None:
    x, y = t64([1.0, 2.0]), t64([[3.0]])
    gx, gy = gf.grad(lambda a, b: (b * b).sum(), (0, 1))(x, y)
    close(gx, [0.0, 0.0])
    close(gy, [[6.0]])
    close(gf.grad(lambda a: t64(3.0))(x), [0.0, 0.0])
    close(gf.grad(lambda a: a.detach().sum())(x), [0.0, 0.0])
    close(gf.grad(lambda a: (a > 0).sum().astype(gf.float64))(x), [0.0, 0.0])
    close(gf.hessian(lambda a: a.sum())(x), np.zeros((2, 2)))
    close(gf.jvp(lambda a: y, (x,), (x,))[1], [[0.0]])
    close(gf.jvp(gf.argmax, (x,), (x,))[1], 0)
    close(gf.vjp(lambda a: y * 2, x)[1](y)[0], [0.0, 0.0])
    close(gf.jacobian(lambda a: y)(x), np.zeros((1, 1, 2)))
    close(gf.hvp(lambda a: a.sum(), x, x), [0.0, 0.0])
    close(gf.grad(gf.grad(lambda a: a * 3.0))(t64(2.0)), 0.0)
    w = t64(2.0, requires_grad=True)
    g = gf.grad(lambda a: w * w)(x)
    close(g, [0.0, 0.0])
    assert gf.grad(lambda t: gf.ones(()))({}) == {}


def test_under_no_grad_the_value_is_right_and_nothing_is_connected() -> None:
    w, x = t64([2.0, 3.0], requires_grad=True), t64([1.0, 2.0], requires_grad=True)

    def f(y: Tensor) -> Tensor:
        assert gf.is_grad_enabled()
        return (w * y**3).sum()

    with gf.no_grad():
        found = [
            gf.grad(f)(x), gf.hessian(f)(x), gf.hvp(f, x, x), *gf.jvp(f, (x,), (x,)), gf.vjp(f, x)[0],
            gf.vjp(f, x)[1](t64(1.0))[0], *gf.value_and_grad(f)(x),
        ]  # fmt: skip
        assert not gf.is_grad_enabled()
    assert not any(t.requires_grad for t in found)
    close(found[0], [6.0, 36.0])
    close(found[1], np.diag([12.0, 36.0]))
    inside = gf.grad(lambda y: (y**2).sum() + _quietly((y**3).sum))(x.detach())
    close(inside, [2.0, 4.0])


def _quietly(f: Callable[[], Any]) -> Any:
    with gf.no_grad():
        return f()


def test_a_pullback_can_be_called_again() -> None:
    x, y = t64([1.0, 2.0]), t64([3.0, 4.0])
    (a, b), pullback = gf.vjp(lambda p, q: (p * q, gf.exp(p)), x, y)
    seeds = [(t64(rng.normal(size=2)), t64(rng.normal(size=2))) for _ in range(3)]
    for u, v in [*seeds, *seeds]:
        gx, gy = pullback((u, v))
        close(gx, u * y + v * gf.exp(x))
        close(gy, u * x)
        assert not gx.requires_grad
    close(a, x * y)
    close(b, gf.exp(x))
    with gf.no_grad():
        close(pullback(seeds[0])[1], seeds[0][0] * x)
    for wrong in (seeds[0][0], (seeds[0][0],), {"a": seeds[0][0], "b": seeds[0][0]}, [*seeds[0], seeds[0][0]]):
        with pytest.raises(errors.ArgumentError, match="the cotangents have not the structure of the outputs"):
            pullback(wrong)
    with pytest.raises(errors.ShapeError, match=r"a cotangent of shape \(3,\) for a tensor of shape \(2,\)"):
        pullback((gf.ones(3), gf.ones(2)))


def test_a_seed_may_be_changed_between_calls() -> None:
    x = t64([1.0, 2.0])
    for f in (gf.exp, cubed_alone, lambda y: y.reshape(2)):
        _, pullback = gf.vjp(f, x)
        v = t64([1.0, 1.0])
        (first,) = pullback(v)
        before = first.numpy().copy()
        v[...] = 2.0
        close(first, before)
        close(pullback(v)[0], 2 * before)


def test_results_share_no_memory() -> None:
    x = t64([1.0, 2.0])
    (g, h), seed = gf.vjp(lambda a, b: a + b, x, x)[1](x), x
    for a, b in ((g, h), (g, seed), (h, seed), (gf.grad(lambda y: y)(t64(1.0)), gf.grad(lambda y: y)(t64(1.0)))):
        assert not np.shares_memory(a._data, b._data)
        a[...] = 7.0
    assert x.tolist() == [1.0, 2.0]
    assert gf.grad(lambda y: y)(t64(1.0)).item() == 1.0


def test_functions_that_write_in_place() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * 1.0
        y += x
        y[0] = x[1] * x[0]
        total = gf.zeros(2, dtype=gf.float64)
        for _ in range(2):
            total += y * y
        return total.sum()

    x = t64([3.0, 5.0])
    close(gf.grad(f)(x), [2 * 2 * 15 * 5, 2 * 2 * 15 * 3 + 2 * 2 * 10 * 2])
    close(gf.hessian(f)(x), [[4 * 25, 4 * 2 * 15], [4 * 2 * 15, 4 * 9 + 16]])
    assert x.tolist() == [3.0, 5.0]


def test_a_write_between_vjp_and_pullback_is_an_error() -> None:
    x = t64([1.0, 2.0])
    _, pullback = gf.vjp(lambda y: y * y, x)
    x += 1.0
    with pytest.raises(errors.GraphError, match="changed in place"):
        pullback(gf.ones(2))


def test_hooks_run_in_transforms() -> None:
    def f(x: Tensor) -> Tensor:
        y = x * x
        y.register_hook(lambda g: g * 10)
        return y.sum()

    x = t64([1.0, 2.0])
    close(gf.grad(f)(x), [20.0, 40.0])
    close(gf.hessian(f)(x), np.diag([20.0, 20.0]))


def test_transforms_can_be_traced() -> None:
    """A derivative, of any order, is recorded as equations like anything else."""
    f = lambda x: (gf.tanh(x) ** 3).sum()  # noqa: E731
    other = t64([0.3, -0.7])
    for transform in (
        gf.grad(f),
        gf.hessian(f),
        lambda x: gf.hvp(f, x, x),
        lambda x: gf.jvp(gf.tanh, (x,), (x,))[1],
        lambda x: gf.vjp(cubed_alone, x)[1](x)[0],
        gf.value_and_grad(f),
        gf.jacobian(gf.grad(f)),
    ):
        _, recorded = trace(transform, t64([1.0, 2.0]))
        expected = transform(other)
        for a, b in zip(recorded.replay(other), expected if isinstance(expected, tuple) else (expected,), strict=True):
            close(a, b)


# ---------------------------------------------------------------------------------------------------- refused, in words
def test_what_grad_refuses() -> None:
    x = t64([1.0, 2.0])
    with pytest.raises(errors.ShapeError) as caught:
        gf.grad(lambda y: y * 2)(x)
    assert text(caught) == (
        "the gradient of a function that returned a tensor of shape (2,).\n"
        "  why: a gradient is that of a scalar; a Jacobian that of an array.\n"
        "  fix: return loss.mean(), or gf.jacobian(f)"
    )
    with pytest.raises(errors.ShapeError, match=r"a tensor of shape \(1,\)"):
        gf.grad(lambda y: y[:1])(x)
    for wrong, kind in ((lambda y: 3.0, "float"), (lambda y: None, "NoneType"), (lambda y: (y.sum(),), "tuple")):
        with pytest.raises(errors.DTypeError, match=f"a function that returned {kind}") as caught:
            gf.grad(wrong)(x)
        assert "has_aux=True" in text(caught)


def test_what_jvp_refuses() -> None:
    x = t64([1.0, 2.0])
    for primals, tangents in (((x,), ()), (x, x), ((x,), x), ((x, x), (x,))):
        with pytest.raises(errors.ArgumentError, match="not two tuples of one length") as caught:
            gf.jvp(gf.tanh, primals, tangents)
        assert "gf.jvp(f, (x,), (v,))" in text(caught)
    for wrong in ((x,), {"a": x, "b": x}, x):
        with pytest.raises(errors.ArgumentError, match="the tangents have not the structure of the primals"):
            gf.jvp(lambda p: p[0] * p[1], ((x, x),), (wrong,))
    with pytest.raises(errors.ShapeError, match=r"a tangent of shape \(1,\) for a tensor of shape \(2,\)"):
        gf.jvp(gf.tanh, (x,), (gf.ones(1),))


def test_what_jacobian_and_hvp_refuse() -> None:
    x = t64([1.0, 2.0])
    with pytest.raises(errors.DTypeError, match="the Jacobian of a function that returned tuple") as caught:
        gf.jacobian(lambda y: (y, y))(x)
    assert "gf.jacobian(lambda x: f(x)[0])" in text(caught)
    with pytest.raises(errors.ShapeError, match=r"a cotangent of shape \(1,\)"):
        gf.hvp(lambda y: y.sum(), x, gf.ones(1))
    with pytest.raises(errors.ShapeError, match="gradient of a function that returned a tensor"):
        gf.hessian(lambda y: y)(x)


# ----------------------------------------------------------------------------------------------------------- custom_vjp
@gf.custom_vjp
def cubed_alone(x: Tensor) -> Tensor:
    return x * x * x


cubed_alone.defvjp(lambda x: (x * x * x, x), lambda x, g: (g * 3 * x * x,))


def counted() -> tuple[Any, list[str]]:
    """x² w with every call of its three functions noted."""
    calls: list[str] = []

    @gf.custom_vjp
    def f(x: Tensor, w: Tensor) -> Tensor:
        calls.append("f")
        return x**2 * w

    def forward(x: Tensor, w: Tensor) -> Any:
        calls.append("forward")
        return x**2 * w, (x, w)

    def backward(saved: Any, g: Tensor) -> Any:
        calls.append("backward")
        x, w = saved
        return g * 2 * x * w, g * x**2

    f.defvjp(forward, backward)
    return f, calls


def test_custom_vjp_calls_each_function_once() -> None:
    f, calls = counted()
    x, w = t64([1.0, 2.0], requires_grad=True), t64([3.0, 4.0], requires_grad=True)
    f(x, w).sum().backward()
    assert calls == ["forward", "backward"]
    close(x.grad, [6.0, 16.0])
    close(w.grad, [1.0, 4.0])
    calls.clear()
    with gf.no_grad():
        f(x, w)
    f(x.detach(), w.detach())
    assert calls == ["f", "f"]
    calls.clear()
    gf.grad(lambda y: f(y, w).sum())(x.detach())
    assert calls == ["forward", "backward"]
    x.grad = None
    y = f(w, w)
    y.sum().backward()
    close(w.grad, [1.0 + 3 * 9, 4.0 + 3 * 16])


def test_custom_vjp_to_higher_orders() -> None:
    x = t64([0.5, -2.0], requires_grad=True)
    for order, expected in enumerate((3 * x.numpy() ** 2, 6 * x.numpy(), np.full(2, 6.0), np.zeros(2)), 1):
        f: Any = cubed_alone
        for _ in range(order):
            f = (lambda g: gf.grad(lambda z: g(z).sum()))(f)  # noqa: PLC3002
        close(f(x), expected)
    cubed_alone(x).sum().backward(create_graph=True)
    g = x.grad
    x.grad = None
    g.sum().backward()  # type: ignore[union-attr]
    close(x.grad, 6 * x.numpy())
    close(gf.jvp(cubed_alone, (x,), (t64([1.0, 10.0]),))[1], 3 * x.numpy() ** 2 * [1.0, 10.0])
    close(gf.hessian(lambda y: cubed_alone(y).sum())(x), np.diag(6 * x.numpy()))


def test_custom_vjp_may_lie() -> None:
    """The given derivative is used, not that of forward: a straight-through estimator, and a clipped gradient."""

    @gf.custom_vjp
    def quantized(x: Tensor) -> Tensor:
        return gf.floor(x)

    quantized.defvjp(lambda x: (gf.floor(x), None), lambda _, g: (gf.clip(g, -1.0, 1.0),))
    x = t64([0.5, 1.5], requires_grad=True)
    (quantized(x) * t64([5.0, 0.5])).sum().backward()
    close(x.grad, [1.0, 0.5])


def test_custom_vjp_other_arguments_and_missing_cotangents() -> None:
    @gf.custom_vjp
    def scaled(x: Tensor, factor: float, labels: Any, w: Tensor) -> Tensor:
        return x * factor + w

    scaled.defvjp(
        lambda x, factor, labels, w: (x * factor + w, factor), lambda factor, g: (g * factor, None, None, None)
    )
    x, w = t64([1.0, 2.0], requires_grad=True), t64([0.0, 0.0], requires_grad=True)
    scaled(x, 3.0, "label", w).sum().backward()
    close(x.grad, [3.0, 3.0])
    close(w.grad, [0.0, 0.0])
    close(gf.grad(lambda y: scaled(y, 2.0, None, w).sum())(x), [2.0, 2.0])


def test_custom_vjp_of_containers() -> None:
    """Cotangents have their arguments' structure; a factor of 100 tells the given derivative from the true one."""

    @gf.custom_vjp
    def dense(params: Any, x: Tensor) -> Tensor:
        return params["w"][0] * x + params["b"]

    def backward(saved: Any, g: Tensor) -> Any:
        params, x = saved
        return {"b": g * 100, "w": [g * x * 100, None]}, g * params["w"][0] * 100  # keys in another order

    dense.defvjp(lambda params, x: (params["w"][0] * x + params["b"], (params, x)), backward)
    params = {"w": [t64(3.0), t64(1.0)], "b": t64(5.0)}
    g, gx = gf.grad(dense, (0, 1))(params, t64(2.0))
    assert [t.item() for t in (*g["w"], g["b"], gx)] == [200.0, 0.0, 100.0, 300.0]
    assert gf.grad(dense)(params, t64(2.0))["w"][0].item() == 200.0
    assert gf.grad(gf.grad(dense, 1), 1)(params, t64(2.0)).item() == 0.0
    second = gf.grad(lambda x: gf.grad(dense)(params, x)["w"][0])(t64(2.0))
    assert second.item() == 100.0
    dense.defvjp(lambda params, x: (x, None), lambda _, g: ({"w": g}, g))
    with pytest.raises(errors.ArgumentError, match="from backward of dense have not the structure of argument 0"):
        gf.grad(dense)(params, t64(2.0))


def test_custom_vjp_keeps_its_residuals() -> None:
    """In-place operations that give an argument new memory do not change what was saved."""
    x = t64([1.0, 2.0], requires_grad=True)
    y = x * 1.0
    z = cubed_alone(y)
    y += 1.0
    z.sum().backward()
    close(x.grad, [3.0, 12.0])


def test_custom_vjp_of_numbers_and_dtypes() -> None:
    x = gf.tensor(2.0, requires_grad=True)
    seen = []

    @gf.custom_vjp
    def f(x: Tensor) -> Tensor:
        return x * x

    def backward(x: Tensor, g: Tensor) -> Any:
        seen.append((g.numpy().shape, g.dtype, gf.is_grad_enabled()))
        return 2 * x * g.astype(gf.float64)

    f.defvjp(lambda x: (x * x, x), backward)
    (f(x) * 3).backward()
    assert x.grad is not None
    assert (x.grad.item(), x.grad.dtype) == (12.0, np.float32)
    assert seen == [((), np.float32, False)]


def test_custom_vjp_retains_and_frees() -> None:
    x = t64([1.0, 2.0], requires_grad=True)
    loss = cubed_alone(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()
    close(x.grad, [6.0, 24.0])
    with pytest.raises(errors.GraphError, match="retain_graph=True"):
        loss.backward()


def test_what_custom_vjp_refuses() -> None:
    x = t64([1.0, 2.0], requires_grad=True)

    @gf.custom_vjp
    def f(x: Tensor, y: Tensor) -> Tensor:
        """Product."""
        return x * y

    assert (f.__name__, f.__doc__) == ("f", "Product.")
    close(f(x.detach(), x.detach()), [1.0, 4.0])
    with pytest.raises(errors.GraphError, match="f has no derivative") as caught:
        f(x, x)
    assert "f.defvjp(forward, backward)" in text(caught)
    for answer in (x, (x,), (1.0, x), None):
        f.defvjp(lambda x, y, answer=answer: answer, lambda s, g: (g, g))
        with pytest.raises(errors.DTypeError, match=r"forward function of f did not return \(tensor, residuals\)"):
            f(x, x)
    for create_graph in (False, True):
        f.defvjp(lambda x, y: (x * y, None), lambda s, g: (g,))
        with pytest.raises(errors.ArgumentError, match="backward of f returned 1 cotangents for 2 arguments"):
            f(x, x).sum().backward(create_graph=create_graph)
        f.defvjp(lambda x, y: (x * y, None), lambda s, g: (g, g.sum()))
        with pytest.raises(errors.ShapeError, match=r"backward of f: a cotangent of shape \(\) for a tensor of shape"):
            f(x, x).sum().backward(create_graph=create_graph)
    assert x.grad is None


@pytest.mark.parametrize("transform", [gf.jacobian, gf.hessian])
@pytest.mark.parametrize("argnums", [(0, 1), 1.5, None])
def test_matrices_are_taken_with_respect_to_one_argument(transform: Any, argnums: Any) -> None:
    with pytest.raises(errors.ArgumentError, match=rf"gf\.{transform.__name__} with argnums="):
        transform(lambda x, y: (x * y).sum(), argnums)


def test_a_hessian_is_that_of_a_function_of_one_tensor() -> None:
    with pytest.raises(errors.DTypeError, match="the Hessian with respect to a tuple"):
        gf.hessian(lambda p: (p[0] * p[1]).sum())((gf.tensor([1.0]), gf.tensor([2.0])))
