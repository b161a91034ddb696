"""Every public operation against PyTorch: values, gradients, second derivatives; the losses with all options."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow import ops

torch = pytest.importorskip("torch")
F = torch.nn.functional

rng = np.random.default_rng(0)
DTYPES = ["float32", "float64"]
TOLERANCE = {"float32": 2e-5, "float64": 1e-12}


def real(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


def positive(*shape: int) -> np.ndarray:
    return rng.uniform(0.2, 2.0, shape)


x, y, v = real(3, 4), real(3, 4), real(4)
p = positive(3, 4)
deep = real(2, 3, 4)
mask = rng.random((3, 4)) < 0.5
w, q = positive(4), positive(3, 1)
order = np.array([2, 0, 0])
along = rng.integers(0, 4, (3, 2))

# public name -> cases: gradflow's call, PyTorch's call, the operands
Call = Callable[..., Any]
CASES: dict[str, list[tuple[Call, Call, tuple[np.ndarray, ...]]]] = {
    **{
        name: [
            (getattr(gf, name), getattr(torch, name), (a, b))
            for a, b in ((x, y), (x, v), (deep, v), (real(), x), (real(), real()))
        ]
        for name in ("add", "subtract", "multiply", "divide", "maximum", "minimum")
    },
    **{
        name: [(getattr(gf, name), getattr(torch, name), (a,)) for a in (x, deep, real(), real(0, 3))]
        for name in ("abs", "exp", "negative", "positive", "sigmoid", "square", "tanh", "relu", "erf")
    },
    "silu": [(gf.silu, F.silu, (a,)) for a in (x, deep, real())],
    "gelu": [
        (lambda a, how=how: gf.gelu(a, approximate=how), lambda a, how=how: F.gelu(a, approximate=how), (a,))
        for how in ("none", "tanh")
        for a in (x, deep, real())
    ],
    "layer_norm": [
        (
            lambda a, w, b: gf.layer_norm(a, w, b, axis=tuple(range(-w.ndim, 0))),
            lambda a, w, b: F.layer_norm(a, w.shape, w, b),
            (a, w, real(*w.shape)),
        )
        for a, w in ((x, real(4)), (deep, real(4)), (deep, real(3, 4)))
    ],
    "dropout": [
        (lambda a: gf.dropout(a, 0.0), torch.clone, (x,)),
        (lambda a: gf.dropout(a, 0.5, training=False), torch.clone, (x,)),
        (lambda a: gf.dropout(a, 1.0), lambda a: a * 0, (x,)),
    ],
    "embedding": [
        (lambda w: gf.embedding(order, w), lambda w: F.embedding(torch.tensor(order), w), (real(4, 3),)),
        (lambda w: gf.embedding(along, w), lambda w: F.embedding(torch.tensor(along), w), (real(4, 3),)),
    ],
    **{
        name: [(getattr(gf, name), getattr(torch, name), (a,)) for a in (p, positive())]
        for name in ("log", "log1p", "sqrt")
    },
    "softplus": [(gf.softplus, lambda a: F.softplus(a, threshold=1e9), (10 * x,))],
    "power": [
        (gf.power, torch.pow, (p, x)),
        (gf.power, torch.pow, (p, v)),
        *[((lambda a, n=n: a**n), (lambda a, n=n: a**n), (x,)) for n in (0, 1, 2, 3)],
        *[((lambda a, n=n: a**n), (lambda a, n=n: a**n), (p,)) for n in (-1, 0.5, 2.5, -0.5, 2.0)],
        (lambda a: 2.5**a, lambda a: 2.5**a, (x,)),
    ],
    "remainder": [(gf.remainder, torch.remainder, (x, p)), (gf.remainder, torch.remainder, (x, -p))],
    "where": [
        (lambda a, b: gf.where(mask, a, b), lambda a, b: torch.where(torch.tensor(mask), a, b), (x, v)),
        (lambda a: gf.where(a > 0, a, 2.0), lambda a: torch.where(a > 0, a, 2.0), (x,)),
    ],
    "clip": [
        (lambda a: gf.clip(a, -0.5, 0.5), lambda a: torch.clip(a, -0.5, 0.5), (x,)),
        (lambda a: gf.clip(a, None, 0.5), lambda a: torch.clip(a, None, 0.5), (x,)),
        (lambda a: gf.clip(a, 0), lambda a: torch.clip(a, 0), (x,)),
        (gf.clip, torch.clone, (x,)),
        (gf.clip, torch.clip, (x, -p, v * v)),
    ],
    "matmul": [
        (gf.matmul, torch.matmul, pair)
        for pair in (
            (x, real(4, 2)),
            (x, v),
            (v, real(4, 2)),
            (v, real(4)),
            (deep, real(4, 2)),
            (x, real(2, 4, 5)),
            (real(2, 1, 3, 4), real(5, 4, 2)),
            (real(5, 3, 4), v),
        )
    ],
    "linear": [(gf.linear, F.linear, (a, real(2, 4), real(2))) for a in (x, deep, v, real(2, 2, 3, 4))]
    + [(gf.linear, F.linear, (x, real(2, 4)))],
    "matrix_transpose": [(gf.matrix_transpose, lambda a: a.mT, (deep,)), (lambda a: a.T, lambda a: a.T, (x,))],
    **{
        name: [
            (f, g, (deep,)),
            *[
                ((lambda a, f=f, axis=axis: f(a, axis=axis)), (lambda a, g=g, axis=axis: g(a, dim=axis)), (deep,))
                for axis in (0, -1, (0, 2), (-1, 1))
            ],
            ((lambda a, f=f: f(a, axis=1, keepdims=True)), (lambda a, g=g: g(a, dim=1, keepdim=True)), (deep,)),
        ]
        for name, f, g in (
            ("sum", gf.sum, torch.sum),
            ("mean", gf.mean, torch.mean),
            ("max", gf.max, torch.amax),
            ("min", gf.min, torch.amin),
            ("var", gf.var, lambda a, **k: torch.var(a, correction=0, **k)),
            ("std", lambda a, **k: gf.std(a, correction=1, **k), lambda a, **k: torch.std(a, correction=1, **k)),
        )
    },
    "logsumexp": [
        (lambda a, axis=axis: gf.logsumexp(a, axis=axis), lambda a, axis=axis: torch.logsumexp(a, axis), (deep,))
        for axis in (0, -1, (0, 2))
    ],
    "softmax": [
        (lambda a, n=n: gf.softmax(a, axis=n), lambda a, n=n: torch.softmax(a, n), (deep,)) for n in (0, 1, -1)
    ],
    "log_softmax": [
        (lambda a, n=n: gf.log_softmax(a, axis=n), lambda a, n=n: torch.log_softmax(a, n), (deep,)) for n in (0, 1, -1)
    ],
    "reshape": [(lambda a: a.reshape(2, -1), lambda a: a.reshape(2, -1), (x,))],
    "flatten": [
        (gf.flatten, torch.flatten, (deep,)),
        (lambda a: gf.flatten(a, start_axis=1), lambda a: torch.flatten(a, 1), (deep,)),
    ],
    "permute_dims": [(lambda a: gf.permute_dims(a, (2, 0, 1)), lambda a: a.permute(2, 0, 1), (deep,))],
    "moveaxis": [(lambda a: gf.moveaxis(a, 0, -1), lambda a: torch.moveaxis(a, 0, -1), (deep,))],
    "broadcast_to": [(lambda a: gf.broadcast_to(a, (2, 3, 4)), lambda a: torch.broadcast_to(a, (2, 3, 4)), (v,))],
    "expand_dims": [(lambda a: gf.expand_dims(a, axis=1), lambda a: a.unsqueeze(1), (x,))],
    "squeeze": [(lambda a: gf.squeeze(a, axis=1), lambda a: a.squeeze(1), (real(3, 1),))],
    "concat": [
        (lambda a, b: gf.concat([a, b, a], axis=1), lambda a, b: torch.concat([a, b, a], 1), (x, real(3, 2))),
        (
            lambda a, b: gf.concat([a, b], axis=None),
            lambda a, b: torch.concat([a.flatten(), b.flatten()]),
            (x, real(3, 2)),
        ),
    ],
    "stack": [(lambda a, b: gf.stack([a, b, a], axis=1), lambda a, b: torch.stack([a, b, a], 1), (x, y))],
    "copy": [(gf.copy, torch.clone, (x,))],
    "astype": [(lambda a: gf.astype(a, gf.float64), lambda a: a.to(torch.float64), (x,))],
    "take": [(lambda a: gf.take(a, order, axis=0), lambda a: torch.index_select(a, 0, torch.tensor(order)), (x,))],
    "take_along_axis": [
        (lambda a: gf.take_along_axis(a, along), lambda a: torch.take_along_dim(a, torch.tensor(along), 1), (x,))
    ],
    "mse_loss": [
        (lambda a, b, r=r: gf.mse_loss(a, b, reduction=r), lambda a, b, r=r: F.mse_loss(a, b, reduction=r), (x, y))
        for r in ("mean", "sum", "none")
    ],
    "binary_cross_entropy_with_logits": [
        (
            lambda a, t, r=r: gf.binary_cross_entropy_with_logits(
                a, t, weight=gf.tensor(w, dtype=a.dtype), pos_weight=gf.tensor(q, dtype=a.dtype), reduction=r
            ),
            lambda a, t, r=r: F.binary_cross_entropy_with_logits(
                a, t, weight=torch.tensor(w, dtype=a.dtype), pos_weight=torch.tensor(q, dtype=a.dtype), reduction=r
            ),
            (x, p / 2),
        )
        for r in ("mean", "sum", "none")
    ]
    + [(gf.binary_cross_entropy_with_logits, F.binary_cross_entropy_with_logits, (10 * x, p / 2))],
    "binary_cross_entropy": [
        (
            lambda a, t, r=r: gf.binary_cross_entropy(gf.sigmoid(a), t, reduction=r),
            lambda a, t, r=r: F.binary_cross_entropy(torch.sigmoid(a), t, reduction=r),
            (x, p / 2),
        )
        for r in ("mean", "sum", "none")
    ],
    "cross_entropy": [
        (gf.cross_entropy, F.cross_entropy, (x, np.exp(y) / np.exp(y).sum(1, keepdims=True))),
        (lambda a: gf.cross_entropy(a, order), lambda a: F.cross_entropy(a, torch.tensor(order)), (x,)),
    ],
}
VALUES: dict[str, list[tuple[Call, Call, tuple[np.ndarray, ...]]]] = {
    **{
        name: [(getattr(gf, name), getattr(torch, name), (x,))]
        for name in ("sign", "floor", "isnan", "isfinite", "isinf", "argmax", "argmin")
    },
    **{
        ours: [(getattr(gf, ours), getattr(torch, theirs), (x.round(), y.round()))]
        for ours, theirs in (
            ("equal", "eq"),
            ("not_equal", "ne"),
            ("less", "lt"),
            ("less_equal", "le"),
            ("greater", "gt"),
            ("greater_equal", "ge"),
        )
    },
    "floor_divide": [(gf.floor_divide, torch.floor_divide, (x, p))],
    **{
        f"bitwise_{n}": [(getattr(gf, f"bitwise_{n}"), getattr(torch, f"bitwise_{n}"), (order, along[:, 0]))]
        for n in ("and", "or", "xor")
    },
    **{
        f"logical_{n}": [(getattr(gf, f"logical_{n}"), getattr(torch, f"logical_{n}"), (mask, mask[::-1].copy()))]
        for n in ("and", "or", "xor")
    },
    "logical_not": [(gf.logical_not, torch.logical_not, (mask,)), (gf.logical_not, torch.logical_not, (order,))],
    "bitwise_invert": [
        (gf.bitwise_invert, torch.bitwise_not, (order,)),
        (gf.bitwise_invert, torch.bitwise_not, (mask,)),
    ],
    "all": [(lambda a: gf.all(a, axis=1), lambda a: torch.all(a, 1), (mask,))],
    "any": [(lambda a: gf.any(a, axis=1), lambda a: torch.any(a, 1), (mask,))],
}
NOT_OPERATIONS = {
    "Generator", "arange", "asarray", "can_cast", "empty", "empty_like", "eye", "finfo", "from_dlpack", "full",
    "full_like", "iinfo", "isdtype", "linspace", "manual_seed", "ones", "ones_like", "random", "result_type", "tensor",
    "zeros", "zeros_like",
}  # fmt: skip


def test_every_public_operation_has_a_case() -> None:
    aliases = {name for name in ops.__all__ if getattr(gf, name).__name__ not in (name, "gradflow.ops.random")}
    assert set(ops.__all__) - NOT_OPERATIONS - aliases == set(CASES) | set(VALUES)


def params(cases: dict[str, list[Any]]) -> list[Any]:
    return [pytest.param(*case, id=f"{name}-{i}") for name, found in cases.items() for i, case in enumerate(found)]


def same(ours: Any, theirs: Any, tolerance: float) -> None:
    assert tuple(ours.shape) == tuple(theirs.shape)
    assert str(theirs.dtype) == f"torch.{ours.dtype}"
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(force=True), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("f", "g", "operands"), params(VALUES))
def test_values(f: Call, g: Call, operands: tuple[np.ndarray, ...]) -> None:
    same(f(*map(gf.tensor, operands)), g(*map(torch.tensor, operands)), 1e-15)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("f", "g", "operands"), params(CASES))
def test_values_gradients_and_second_derivatives(
    f: Call, g: Call, operands: tuple[np.ndarray, ...], dtype: str
) -> None:
    """y, ∂⟨c, y⟩/∂x, and the gradient of ⟨u, ∂⟨c, y⟩/∂x⟩ with respect to x and c."""
    tolerance = TOLERANCE[dtype]
    arrays = [np.asarray(a, dtype) for a in operands]
    ours = [gf.tensor(a, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    value, expected = f(*ours), g(*theirs)
    same(value, expected, tolerance)

    c = np.random.default_rng(1).uniform(0.5, 1.5, value.shape).astype(value.dtype)
    seed = gf.tensor(c, requires_grad=True)
    their_seed = torch.tensor(c, requires_grad=True)
    f(*ours).backward(gf.tensor(c))
    raw = [t.grad for t in ours]
    for t in ours:
        t.grad = None
    value.backward(seed, create_graph=True)
    gradients = torch.autograd.grad(expected, theirs, their_seed, create_graph=True)
    for t, first, right in zip(ours, raw, gradients, strict=True):
        same(first, right, tolerance)
        same(t.grad, right, tolerance)

    u = [np.random.default_rng(2).uniform(0.5, 1.5, a.shape).astype(dtype) for a in arrays]
    total = sum((t.grad * gf.tensor(w)).sum() for t, w in zip(ours, u, strict=True))
    their_total = sum((r * torch.tensor(w)).sum() for r, w in zip(gradients, u, strict=True))
    for t in ours:
        t.grad = None
    if not their_total.requires_grad:
        return
    total.backward()
    seconds = torch.autograd.grad(their_total, [*theirs, their_seed], allow_unused=True)
    for t, right in zip([*ours, seed], seconds, strict=True):
        found = np.zeros(t.shape) if t.grad is None else t.grad.numpy()
        known = np.zeros(t.shape) if right is None else right.numpy(force=True)
        np.testing.assert_allclose(found, known, rtol=20 * tolerance, atol=20 * tolerance)


# ---------------------------------------------------------------- cross-entropy with every option
SHAPES = [(5,), (4, 5), (4, 5, 3), (2, 5, 3, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cross_entropy(shape: tuple[int, ...], weighted: bool, smoothing: float, reduction: str, dtype: str) -> None:
    local = np.random.default_rng(0)
    at = 0 if len(shape) == 1 else 1
    logits = (3 * local.standard_normal(shape)).astype(dtype)
    weight = local.uniform(0.5, 2.0, 5).astype(dtype) if weighted else None
    labels = local.integers(0, 5, shape[:at] + shape[at + 1 :])
    ignored = labels.copy()
    ignored.reshape(-1)[::3] = -100
    probabilities = local.dirichlet(np.ones(5), shape[:at] + shape[at + 1 :])
    targets = [(labels, -100), (labels, 1), (np.moveaxis(probabilities, -1, at).astype(dtype), -100)]
    targets += [(ignored, -100)] if at else []
    for (target, ignore), scale in itertools.product(targets, (1.0, 1e3)):
        ours = gf.tensor(scale * logits, dtype=dtype, requires_grad=True)
        theirs = torch.tensor(scale * logits, dtype=getattr(torch, dtype), requires_grad=True)
        options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignore}
        if target.dtype.kind != "f" and (target == ignore).all() and reduction == "mean":
            continue  # the mean over nothing
        value = gf.cross_entropy(
            ours, gf.tensor(target), weight=None if weight is None else gf.tensor(weight), **options
        )
        expected = F.cross_entropy(
            theirs, torch.tensor(target), weight=None if weight is None else torch.tensor(weight), **options
        )
        same(value, expected, TOLERANCE[dtype])
        seed = local.uniform(0.5, 1.5, value.shape).astype(dtype)
        value.backward(gf.tensor(seed))
        expected.backward(torch.tensor(seed))
        same(ours.grad, theirs.grad, TOLERANCE[dtype])


@pytest.mark.parametrize("options", [{}, {"pos_weight": 2.5}, {"weight": 0.5}], ids=str)
def test_binary_cross_entropy_of_far_logits(options: dict[str, float]) -> None:
    logits = np.array([-1e4, -100.0, -1.0, 0.0, 1.0, 100.0, 1e4])
    for target in (0.0, 0.3, 1.0):
        ours, theirs = gf.tensor(logits, requires_grad=True), torch.tensor(logits, requires_grad=True)
        t = np.full(7, target)
        value = gf.binary_cross_entropy_with_logits(ours, gf.tensor(t), **options)
        expected = F.binary_cross_entropy_with_logits(
            theirs, torch.tensor(t), **{name: torch.tensor([o]).double() for name, o in options.items()}
        )
        same(value, expected, 1e-14)
        value.backward()
        expected.backward()
        same(ours.grad, theirs.grad, 1e-14)


# ---------------------------------------------------------------- kinks, where a convention decides
@pytest.mark.parametrize(
    ("f", "g", "operands"),
    [
        (gf.relu, torch.relu, ([-1.0, -0.0, 0.0, 1.0],)),
        (gf.abs, torch.abs, ([-1.0, -0.0, 0.0, 1.0],)),
        (gf.maximum, torch.maximum, ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])),
        (gf.minimum, torch.minimum, ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])),
        (gf.max, torch.amax, ([1.0, 3.0, 3.0],)),
        (gf.min, torch.amin, ([1.0, 1.0, 3.0],)),
        (lambda a: gf.clip(a, -1, 1), lambda a: torch.clip(a, -1, 1), ([-2.0, -1.0, 0.0, 1.0, 2.0],)),
        (lambda a: a**0, lambda a: a**0, ([0.0, 1.0],)),
        (gf.power, torch.pow, ([0.0, 0.0, 0.0], [0.0, 1.0, 2.0])),
        (gf.logsumexp, lambda a: torch.logsumexp(a, 0), ([-np.inf, 0.0],)),
        (gf.softmax, lambda a: torch.softmax(a, 0), ([-np.inf, 0.0, 1.0],)),
    ],
)
def test_conventions_at_kinks(f: Call, g: Call, operands: tuple[list[float], ...]) -> None:
    ours = [gf.tensor(np.array(a), requires_grad=True) for a in operands]
    theirs = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in operands]
    f(*ours).sum().backward()
    g(*theirs).sum().backward()
    for t, right in zip(ours, theirs, strict=True):
        same(t.grad, right.grad, 1e-15)


# ---------------------------------------------------------------- a network, twice differentiated
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_networks_hessian_times_a_vector(dtype: str) -> None:
    """Weight sharing, indexing, normalisation, concatenation and a loss in one graph."""
    local = np.random.default_rng(3)
    arrays = [local.standard_normal(s).astype(dtype) for s in ((6, 5), (8, 5), (8,), (3, 16), (3,), (8, 8))]
    labels = np.array([0, 2, 1, -100, 1, 0])

    def ours(inputs: Any, w1: Any, b1: Any, w2: Any, b2: Any, shared: Any) -> Any:
        h = gf.tanh(gf.linear(inputs, w1, b1))
        h = h + gf.softplus(h @ shared) * gf.sigmoid(h @ shared.mT)
        h = (h - h.mean(axis=-1, keepdims=True)) / gf.sqrt(h.var(axis=-1, keepdims=True) + 1e-3)
        h = gf.concat([h, gf.exp(-(h[:, ::-1] ** 2))], axis=1)
        logits = gf.linear(h, w2, b2)
        penalty = gf.logsumexp(gf.abs(w2) + 0.1, axis=1).sum() + (gf.softmax(shared, axis=0) ** 2).mean()
        return gf.cross_entropy(logits, labels, label_smoothing=0.1) + gf.cross_entropy(logits, labels) + 0.1 * penalty

    def theirs(inputs: Any, w1: Any, b1: Any, w2: Any, b2: Any, shared: Any) -> Any:
        t = torch.tensor(labels)
        h = torch.tanh(F.linear(inputs, w1, b1))
        h = h + F.softplus(h @ shared) * torch.sigmoid(h @ shared.mT)
        h = (h - h.mean(-1, keepdim=True)) / torch.sqrt(h.var(-1, keepdim=True, correction=0) + 1e-3)
        h = torch.concat([h, torch.exp(-(h.flip(1) ** 2))], 1)
        logits = F.linear(h, w2, b2)
        penalty = torch.logsumexp(torch.abs(w2) + 0.1, 1).sum() + (torch.softmax(shared, 0) ** 2).mean()
        return F.cross_entropy(logits, t, label_smoothing=0.1) + F.cross_entropy(logits, t) + 0.1 * penalty

    xs = [gf.tensor(a, requires_grad=True) for a in arrays]
    ts = [torch.tensor(a, requires_grad=True) for a in arrays]
    vectors = [local.standard_normal(a.shape).astype(dtype) for a in arrays]
    loss, expected = ours(*xs), theirs(*ts)
    tolerance = {"float32": 2e-4, "float64": 1e-11}[dtype]
    same(loss, expected, tolerance)
    loss.backward(create_graph=True)
    gradients = torch.autograd.grad(expected, ts, create_graph=True)
    firsts = [t.grad for t in xs]
    for t, first, right in zip(xs, firsts, gradients, strict=True):
        same(first, right, tolerance)
        t.grad = None
    sum((g * gf.tensor(w)).sum() for g, w in zip(firsts, vectors, strict=True)).backward()
    their_total = sum((g * torch.tensor(w)).sum() for g, w in zip(gradients, vectors, strict=True))
    for t, right in zip(xs, torch.autograd.grad(their_total, ts), strict=True):
        same(t.grad, right, 10 * tolerance)


# ---------------------------------------------------------------- memory shared with PyTorch
def test_dlpack_and_arrays_of_pytorch() -> None:
    t = torch.arange(3.0)
    shared = gf.from_dlpack(t)
    t[0] = 7.0
    assert shared.tolist() == [7.0, 1.0, 2.0]
    back = torch.from_dlpack(gf.tensor([1.0, 2.0]))
    assert back.tolist() == [1.0, 2.0]
    assert gf.tensor(torch.tensor([1.5])).dtype is gf.float32
    assert gf.tensor(torch.tensor([[1, 2]])).dtype is gf.int64
    assert gf.tensor([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]).tolist() == [[1.0, 2.0], [3.0, 4.0]]
