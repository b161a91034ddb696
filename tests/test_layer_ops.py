"""erf, GELU, SiLU, layer normalisation, dropout and embedding: exact values, extremes, randomness, recorded steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn, optim
from gradflow.compiler import trace
from gradflow.primitive import REGISTRY, namespace
from gradflow.testing.backends import without_kernels

RULES = without_kernels("numpy")
BACKENDS: list[Any] = ["numpy", RULES]
backends = pytest.mark.parametrize("backend", BACKENDS, ids=["kernels", "rules"])
ULPS = {np.float32: 2.0, np.float64: 2.0}


# ---------------------------------------------------------------- erf
def arguments(dtype: Any) -> np.ndarray:
    """Where erf is curved, near the seams of its approximations, and from the smallest numbers to the largest."""
    rng = np.random.default_rng(0)
    smallest = math.log10(np.finfo(dtype).smallest_subnormal) + 1
    sizes = 10.0 ** rng.uniform(smallest, math.log10(np.finfo(dtype).max), 200)
    seams = [np.nextafter(dtype(s), dtype(to)) for s in (1, 4, 6) for to in (0, s, 9)]
    x = np.concatenate([rng.uniform(-6.5, 6.5, 1500), rng.uniform(-1.2, 1.2, 800), sizes, seams]).astype(dtype)
    return np.concatenate([x, -x])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_is_within_two_units_in_the_last_place(dtype: Any) -> None:
    mpmath = pytest.importorskip("mpmath")
    x = arguments(dtype)
    with np.errstate(under="ignore"):
        found = gf.erf(gf.tensor(x)).numpy()
    worst = 0.0
    with mpmath.workdps(40):
        for value, y in zip(x, found, strict=True):
            exact = mpmath.erf(mpmath.mpf(float(value)))
            unit = float(np.spacing(np.abs(dtype(exact))))
            worst = max(worst, float(abs(mpmath.mpf(float(y)) - exact)) / unit)
    assert worst <= ULPS[dtype]
    assert worst > 0.3, "a comparison that finds no rounding compares nothing"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_erf_is_scipys_for_many_and_few(dtype: Any) -> None:
    """In chunks, of one number, of strided memory; bit for bit the same as one by one."""
    special = pytest.importorskip("scipy.special")
    x = np.random.default_rng(1).normal(0, 2, (300, 101)).astype(dtype)
    found = gf.erf(gf.tensor(x)).numpy()
    np.testing.assert_allclose(found, special.erf(x), rtol=4 * np.finfo(dtype).eps)
    assert np.array_equal(gf.erf(gf.asarray(x[::3, ::2])).numpy(), found[::3, ::2])
    assert gf.erf(gf.tensor(x[5, 7])).item() == found[5, 7]


def test_erf_of_special_values() -> None:
    x = gf.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 30.0, -30.0])
    y = gf.erf(x).numpy()
    np.testing.assert_array_equal(y, [1.0, -1.0, math.nan, 0.0, 0.0, 1.0, -1.0])
    assert np.signbit(y[4]) and not np.signbit(y[3])
    np.testing.assert_allclose(gf.grad(lambda t: gf.erf(t).sum())(gf.tensor([0.0, math.inf])).numpy(), [1.1283792, 0])


# ---------------------------------------------------------------- gates
GATES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "gelu": (gf.gelu, lambda torch: torch.nn.functional.gelu),
    "gelu-tanh": (
        lambda x: gf.gelu(x, approximate="tanh"),
        lambda torch: lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    ),
    "silu": (gf.silu, lambda torch: torch.nn.functional.silu),
}


@backends
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gates_and_their_derivatives_are_pytorchs(name: str, dtype: Any, backend: Any) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = GATES[name]
    values = np.concatenate([np.linspace(-12, 12, 401), [-1e4, 1e4, -80.0, 80.0]]).astype(dtype)
    x, other = gf.tensor(values, requires_grad=True, backend=backend), torch.tensor(values, requires_grad=True)
    y, expected = ours(x), theirs(torch)(other)
    y.sum().backward()
    expected.sum().backward()
    tolerance = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy(), rtol=tolerance, atol=tolerance)
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), other.grad.numpy(), rtol=tolerance, atol=6 * tolerance)  # 1 − Φ cancels


@backends
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gates_at_infinity(name: str, dtype: Any, backend: Any) -> None:
    """They end in 0 and in x, with slopes 0 and 1, for any size; a NaN stays one. No warning comes."""
    big = float(np.finfo(dtype).max)
    values = np.array([-math.inf, -big, -1e5, 1e5, big, math.inf], dtype)
    x = gf.tensor(values, requires_grad=True, backend=backend)
    with np.errstate(all="raise", under="ignore"):
        y = GATES[name][0](x)
        y.sum().backward()
    np.testing.assert_array_equal(y.detach().numpy(), [0, 0, 0, *values[3:]])
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), [0, 0, 0, 1, 1, 1])
    assert math.isnan(GATES[name][0](gf.tensor(math.nan, backend=backend)).item())


def test_gates_by_hand() -> None:
    x = 0.7
    phi = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    big_phi = (1 + math.erf(x / math.sqrt(2))) / 2
    t = gf.tensor(x, dtype=gf.float64)
    first, second = gf.grad(gf.gelu)(t), gf.grad(gf.grad(gf.gelu))(t)
    assert gf.gelu(t).item() == pytest.approx(x * big_phi, rel=1e-14)
    assert first.item() == pytest.approx(big_phi + x * phi, rel=1e-14)
    assert second.item() == pytest.approx((2 - x * x) * phi, rel=1e-13)
    s = 1 / (1 + math.exp(-x))
    assert gf.silu(t).item() == pytest.approx(x * s, rel=1e-14)
    assert gf.grad(gf.silu)(t).item() == pytest.approx(s + x * s * (1 - s), rel=1e-14)
    curvature = s * (1 - s) * (2 + x * (1 - 2 * s))
    assert gf.grad(gf.grad(gf.silu))(t).item() == pytest.approx(curvature, rel=1e-13)


def test_the_approximation_of_gelu_is_as_near_as_said() -> None:
    x = gf.tensor(np.linspace(-8, 8, 4001))
    assert abs(gf.gelu(x) - gf.gelu(x, approximate="tanh")).max().item() < 5e-4


# ---------------------------------------------------------------- layer normalisation
def exact_layer_norm(x: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    wide = x.astype(np.longdouble)
    return (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + eps)


@backends
@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4, 1e6])
@pytest.mark.parametrize("width", [3, 64, 1000])
def test_layer_norm_is_exact_far_from_zero(offset: float, width: int, backend: Any) -> None:
    """PyTorch's is off by 5e-4 at an offset of 10⁴ in float32; what the numbers themselves lost is not counted."""
    x = (np.random.default_rng(width).normal(size=(20, width)) + offset).astype(np.float32)
    found = gf.layer_norm(gf.tensor(x, backend=backend)).numpy()
    np.testing.assert_allclose(found, exact_layer_norm(x), rtol=4e-6, atol=4e-6)


@backends
def test_gradients_of_layer_norm_are_exact_far_from_zero(backend: Any) -> None:
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(5, 40)) + 1e4).astype(np.float32), rng.normal(size=(5, 40)).astype(np.float32)
    w = rng.normal(size=40).astype(np.float32)

    def gradients(dtype: Any) -> list[np.ndarray]:
        a, b, c = (gf.tensor(v.astype(dtype), requires_grad=True, backend=backend) for v in (x, w, w))
        gf.layer_norm(a, b, c).backward(gf.tensor(g.astype(dtype), backend=backend))
        return [t.grad.numpy() for t in (a, b, c) if t.grad is not None]

    for found, exact in zip(gradients(np.float32), gradients(np.float64), strict=True):
        np.testing.assert_allclose(found, exact, rtol=2e-5, atol=2e-5)


@backends
@pytest.mark.parametrize("value", [0.0, 0.1, 1e4, -3e7])
@pytest.mark.parametrize("width", [1, 3, 50])
def test_layer_norm_of_constant_rows_is_the_bias(value: float, width: int, backend: Any) -> None:
    x = gf.tensor(np.full((2, width), value, np.float32), requires_grad=True, backend=backend)
    y = gf.layer_norm(x, None, gf.full(width, 2.0, backend=backend))
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), 2.0, atol=1e-4 * max(1, abs(value) / 1e4))
    assert x.grad is not None and np.isfinite(x.grad.numpy()).all()
    np.testing.assert_allclose(x.grad.numpy(), 0.0, atol=1e-3)


@backends
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_layer_norm_is_honest_about_what_is_not_finite(backend: Any) -> None:
    """A NaN or an infinity makes its own row NaN, and no other."""
    x = np.random.default_rng(0).normal(size=(4, 5))
    x[1, 2], x[2, 0] = math.nan, math.inf
    y = gf.layer_norm(gf.tensor(x, backend=backend)).numpy()
    np.testing.assert_array_equal(np.isnan(y).all(axis=1), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(y).any(axis=1), [False, True, True, False])


def test_layer_norm_over_several_axes_is_that_of_them_as_one() -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    several = gf.layer_norm(gf.tensor(x), gf.ones((3, 4)), axis=(-2, -1)).numpy()
    np.testing.assert_allclose(several.reshape(2, 12), gf.layer_norm(gf.tensor(x.reshape(2, 12))).numpy(), rtol=1e-12)


# ---------------------------------------------------------------- dropout
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_the_mean(p: float) -> None:
    n = 100_000
    y = gf.dropout(gf.ones(n), p, generator=gf.Generator(1)).numpy()
    assert set(np.unique(y)) == {0.0, np.float32(1 / (1 - p))}
    deviation = math.sqrt(p * (1 - p) / n)
    assert abs((y == 0).mean() - p) < 5 * deviation
    assert abs(y.mean() - 1) < 5 * deviation / (1 - p)


def test_dropout_is_decided_by_the_seed_alone() -> None:
    masks = []
    for dtype in (gf.float32, gf.float64):
        for backend in BACKENDS:
            gf.manual_seed(5)
            first = gf.dropout(gf.ones((3, 7), dtype=dtype, backend=backend), 0.3).numpy() != 0
            second = gf.dropout(gf.ones((3, 7), dtype=dtype, backend=backend), 0.3).numpy() != 0
            assert (first != second).any()
            masks.append((first, second))
    for mask in masks[1:]:
        np.testing.assert_array_equal(mask, masks[0])
    u = gf.random.uniform((3, 7), generator=gf.Generator(5)).numpy()
    np.testing.assert_array_equal(masks[0][0], u >= np.float32(0.3))


def test_the_gradient_of_dropout_has_its_mask() -> None:
    x = gf.tensor(np.arange(1.0, 51.0), requires_grad=True)
    y = gf.dropout(x, 0.5, generator=gf.Generator(2))
    y.sum().backward()
    assert x.grad is not None
    np.testing.assert_array_equal(x.grad.numpy(), np.where(y.detach().numpy() != 0, 2.0, 0.0))


def test_dropout_of_nothing_and_of_everything() -> None:
    x = gf.tensor([1.0, -2.0], requires_grad=True)
    generator = gf.Generator(0)
    assert gf.dropout(x, 0.0) is x
    assert gf.dropout(x, 0.7, training=False) is x
    y = gf.dropout(x, 1.0, generator=generator)
    assert y.tolist() == [0.0, 0.0]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.0, 0.0]
    assert generator.get_state() == (0, 0)


def test_a_recorded_dropout_draws_anew_each_time_as_the_eager_one_does() -> None:
    """The mask is computed from the generator's state, which a replay reads and moves on."""
    layer, x = nn.Dropout(0.4), gf.tensor(np.arange(1.0, 9.0))
    gf.manual_seed(3)
    eager = [layer(x).tolist() for _ in range(4)]
    gf.manual_seed(3)
    first, recorded = trace(layer, x)
    assert [e.primitive.name for e in recorded.equations] == ["random_uniform", "advance", "greater_equal", "dropout"]
    assert [first.tolist(), *(recorded.replay(x)[0].tolist() for _ in range(3))] == eager


def test_dropout_layers_stop_in_evaluation() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    x = gf.ones((4, 3))
    assert (model(x).numpy() == 0).any()
    model.eval()
    np.testing.assert_array_equal(model(x).detach().numpy(), model[0](x).detach().numpy())
    assert repr(model[1]) == "Dropout(p=0.5)"


# ---------------------------------------------------------------- embedding
@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"])
def test_indices_are_of_any_integer_dtype(dtype: str) -> None:
    w = gf.tensor(np.arange(12.0).reshape(4, 3), requires_grad=True)
    indices = gf.tensor([[3, 0], [3, 1]], dtype=dtype)
    y = gf.embedding(indices, w)
    np.testing.assert_array_equal(y.detach().numpy(), np.arange(12.0).reshape(4, 3)[[[3, 0], [3, 1]]])
    y.sum().backward()
    assert w.grad is not None
    np.testing.assert_array_equal(w.grad.numpy(), np.array([1, 1, 0, 2])[:, None] * np.ones(3))


def test_the_fix_for_a_large_index_is_a_table_that_has_it() -> None:
    with pytest.raises(errors.IndexRangeError, match=r"nn\.Embedding\(256, width\)"):
        gf.embedding(gf.tensor([0, 255], dtype="uint8"), gf.zeros((4, 2)))
    with pytest.raises(errors.IndexRangeError, match=r"nn\.Embedding\(1, width\)"):
        gf.embedding(gf.tensor([0]), gf.zeros((0, 2)))


@backends
@given(data=st.data())
def test_an_index_out_of_range_is_named_with_its_position(backend: Any, data: st.DataObject) -> None:
    rows = data.draw(st.integers(1, 5))
    shape = data.draw(st.sampled_from([(4,), (2, 3), (2, 1, 3)]))
    indices = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, rows, shape)
    place = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    indices[place] = data.draw(st.sampled_from([-1, rows, rows + 7, -(2**40), 2**40]))
    shown = place[0] if len(place) == 1 else place
    with pytest.raises(errors.IndexRangeError) as caught:
        gf.embedding(gf.tensor(indices, backend=backend), gf.ones((rows, 2), backend=backend))
    assert str(caught.value).startswith(f"embedding got index {indices[place]} at position {shown} for {rows} rows.")


def test_a_recorded_embedding_checks_its_bounds_too() -> None:
    layer = nn.Embedding(4, 2)
    _, recorded = trace(layer, gf.tensor([0, 3]))
    assert recorded.replay(gf.tensor([1, 1]))[0].tolist() == [layer.weight.tolist()[1]] * 2
    with pytest.raises(errors.IndexRangeError, match="embedding got index 4 at position 1 for 4 rows"):
        recorded.replay(gf.tensor([0, 4]))


def test_padding_begins_as_zeros_and_is_not_trained() -> None:
    layer = nn.Embedding(4, 2, padding_idx=-1)
    assert layer.padding_idx == 3
    optimizer = optim.SGD(layer.parameters(), lr=1.0)
    layer(gf.tensor([3, 0, 3])).sum().backward()
    optimizer.step()
    assert layer.weight.tolist()[3] == [0.0, 0.0]
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]]


def test_an_embedding_begins_normal() -> None:
    gf.manual_seed(0)
    weight = nn.Embedding(500, 100).weight.numpy()
    assert abs(weight.mean()) < 0.02
    assert weight.std() == pytest.approx(1.0, rel=0.02)


# ---------------------------------------------------------------- recorded steps
class Net(nn.Module):
    """All the new layers together."""

    def __init__(self) -> None:
        self.table = nn.Embedding(6, 8, padding_idx=0)
        self.norm = nn.LayerNorm(8)
        self.body = nn.Residual(nn.LayerNorm(8, bias=False), nn.Linear(8, 8), nn.GELU(), nn.Dropout(0.3))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(8, 3), nn.GELU("tanh"))

    def forward(self, indices: Any) -> Any:
        return self.head(self.body(self.norm(self.table(indices))))


@pytest.mark.parametrize("clip", ["norm", "inf-norm", "value"])
def test_a_whole_step_is_recorded_with_clipping(clip: str) -> None:
    """Forward, backward, clipping and update; replayed on other indices and labels it does what eager does."""

    def made() -> tuple[Net, Callable[..., Any]]:
        gf.manual_seed(0)
        model = Net()
        optimizer = optim.AdamW(model.parameters(), lr=0.01)

        def step(indices: Any, labels: Any) -> Any:
            loss = gf.cross_entropy(model(indices), labels)
            model.zero_grad()
            loss.backward()
            if clip == "value":
                nn.utils.clip_grad_value_(model.parameters(), 0.01)
            else:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1, math.inf if clip == "inf-norm" else 2.0)
            optimizer.step()
            return loss

        return model, step

    rng = np.random.default_rng(0)
    batches = [(gf.tensor(rng.integers(0, 6, 10)), gf.tensor(rng.integers(0, 3, 10))) for _ in range(5)]
    eager, eager_step = made()
    gf.manual_seed(1)
    expected = [eager_step(*batch).item() for batch in batches]
    model, step = made()
    gf.manual_seed(1)
    first = step(*batches[0])
    second, recorded = trace(step, *batches[1])
    losses = [first.item(), second.item(), *(recorded.replay(*batch)[0].item() for batch in batches[2:])]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for p, q in zip(model.parameters(), eager.parameters(), strict=True):
        np.testing.assert_allclose(p.numpy(), q.numpy(), rtol=1e-5, atol=1e-7)


def test_a_gradient_penalty_goes_through_the_new_layers() -> None:
    """The derivative of ‖∂f/∂x‖², against PyTorch's."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    values, w = rng.normal(size=(4, 6)), rng.normal(size=6)
    F = torch.nn.functional
    x, weight = gf.tensor(values), gf.tensor(w, requires_grad=True)
    (g,) = (gf.grad(lambda t: (gf.silu(gf.gelu(gf.layer_norm(t, weight, None)))).sum())(x),)
    (g * g).sum().backward()
    other, v = torch.tensor(values, requires_grad=True), torch.tensor(w, requires_grad=True)
    (h,) = torch.autograd.grad(F.silu(F.gelu(F.layer_norm(other, (6,), v))).sum(), other, create_graph=True)
    (h * h).sum().backward()
    np.testing.assert_allclose(g.detach().numpy(), h.detach().numpy(), rtol=1e-9, atol=1e-12)
    assert weight.grad is not None
    np.testing.assert_allclose(weight.grad.numpy(), v.grad.numpy(), rtol=1e-9, atol=1e-12)


def test_every_composition_is_made_of_primitives() -> None:
    """What a compiler without a kernel of the name falls back to."""
    xp = namespace(RULES)
    assert {
        name for name in ("gelu", "silu", "layer_norm", "dropout", "embedding") if REGISTRY[name].impl is None
    } == set()
    assert xp.gelu(np.array([1.0]), approximate="none")[0] == pytest.approx(0.8413447460685429)


# ---------------------------------------------------------------- clipping
@pytest.mark.parametrize("norm_type", [2.0, math.inf])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_clipping_what_is_not_finite_is_pytorchs(bad: float, norm_type: float) -> None:
    torch = pytest.importorskip("torch")
    p, q = gf.Parameter([1.0, 1.0, 1.0]), torch.nn.Parameter(torch.ones(3))
    p.grad, q.grad = gf.tensor([1.0, bad, 2.0]), torch.tensor([1.0, bad, 2.0])
    with pytest.raises(errors.ArgumentError, match=f"the norm of the gradients is {bad}"):
        nn.utils.clip_grad_norm_([p], 1.0, norm_type, error_if_nonfinite=True)
    assert p.grad.tolist()[::2] == [1.0, 2.0]
    found = nn.utils.clip_grad_norm_([p], 1.0, norm_type)
    expected = torch.nn.utils.clip_grad_norm_([q], 1.0, norm_type)
    np.testing.assert_array_equal(found.numpy(), expected.numpy())
    np.testing.assert_array_equal(p.grad.numpy(), q.grad.numpy())


def test_a_recorded_step_refuses_to_read_the_norm() -> None:
    p = gf.Parameter([1.0, 2.0])

    def step(x: gf.Tensor) -> gf.Tensor:
        p.grad = None
        (p * x).sum().backward()
        return nn.utils.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)

    with pytest.raises(errors.TracedValueError):
        trace(step, gf.tensor([3.0, 4.0]))
