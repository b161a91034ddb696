"""Every loss that gradflow.nn exports, against PyTorch, and the mistakes that must be loud."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn

rng = np.random.default_rng(0)
scores = rng.normal(size=(6, 4)) * 3
labels = np.array([0, 3, 1, 1, 2, 0])
some_ignored = np.array([0, 3, -100, 1, 2, -100])
probabilities = rng.dirichlet(np.ones(4), size=6)
weights = np.array([0.5, 2.0, 1.0, 0.1])
deep = rng.normal(size=(2, 4, 3))
deep_labels = rng.integers(0, 4, size=(2, 3))

# loss -> cases: options, input, target; an array among the options becomes a Tensor
Case = tuple[dict[str, Any], np.ndarray, np.ndarray]
LOSSES: dict[type[nn.Loss], list[Case]] = {
    nn.CrossEntropyLoss: [
        ({}, scores, labels),
        ({}, scores, probabilities),
        ({}, scores, np.eye(4)[labels]),
        ({}, scores[0], np.array(2)),
        ({}, deep, deep_labels),
        ({"weight": weights}, scores, labels),
        ({"weight": weights}, scores, probabilities),
        ({}, scores, some_ignored),
        ({"weight": weights, "ignore_index": 1}, scores, labels),
        ({"label_smoothing": 0.2}, scores, labels),
        ({"label_smoothing": 0.2}, scores, probabilities),
        ({"label_smoothing": 0.1, "weight": weights}, scores, some_ignored),
        ({"label_smoothing": 0.1, "weight": weights}, deep, deep_labels),
        ({"label_smoothing": 1.0}, scores, labels),
        ({}, scores * 1e4, labels),
    ],
    nn.BCEWithLogitsLoss: [
        ({}, scores, (probabilities > 0.3) * 1.0),
        ({}, scores, probabilities),
        ({"weight": weights}, scores, probabilities),
        ({"pos_weight": weights}, scores, probabilities),
        ({"pos_weight": weights, "weight": weights[::-1].copy()}, scores, probabilities),
        ({}, scores * 1e4, probabilities),
        ({}, scores[0, 0], np.array(1.0)),
    ],
    nn.BCELoss: [
        ({}, probabilities, probabilities[::-1].copy()),
        ({}, probabilities, (probabilities > 0.3) * 1.0),
        ({"weight": weights}, probabilities, probabilities[::-1].copy()),
        ({}, np.array([0.0, 1.0, 1e-9]), np.array([0.0, 1.0, 1.0])),
        ({}, np.array(0.25), np.array(1.0)),
    ],
    nn.MSELoss: [({}, scores, probabilities), ({}, scores[0, 0], np.array(1.0)), ({}, deep, 2 * deep)],
}
CASES = [
    pytest.param(loss, *case, id=f"{loss.__name__}-{i}")
    for loss, cases in LOSSES.items()
    for i, case in enumerate(cases)
]


def test_every_exported_loss_has_a_case() -> None:
    exported = {value for name in nn.__all__ if isinstance(value := getattr(nn, name), type)}
    assert set(LOSSES) == {cls for cls in exported if issubclass(cls, nn.Loss) and cls is not nn.Loss}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("loss", "options", "x", "target"), CASES)
def test_values_and_gradients_are_pytorchs(
    loss: type[nn.Loss], options: dict[str, Any], x: np.ndarray, target: np.ndarray, reduction: str, dtype: str
) -> None:
    torch = pytest.importorskip("torch")

    def cast(value: Any) -> Any:
        return value.astype(dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value

    def convert(make: Callable[[Any], Any]) -> dict[str, Any]:
        return {k: make(cast(v)) if isinstance(v, np.ndarray) else v for k, v in options.items()}

    ours = loss(**convert(gf.tensor), reduction=reduction)  # type: ignore[call-arg]
    theirs = getattr(torch.nn, loss.__name__)(**convert(torch.tensor), reduction=reduction)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: tuple(v.shape) for k, v in theirs.state_dict().items()
    }
    x_ours = gf.tensor(cast(np.asarray(x)), requires_grad=True)
    x_theirs = torch.tensor(cast(np.asarray(x)), requires_grad=True)
    value = ours(x_ours, gf.tensor(cast(target)))
    expected = theirs(x_theirs, torch.tensor(cast(target)))
    cotangent = np.asarray(np.random.default_rng(1).normal(size=value.shape), dtype)
    value.backward(gf.tensor(cotangent))
    expected.backward(torch.tensor(cotangent))
    tolerance = {"float32": 1e-5, "float64": 1e-13}[dtype]
    for a, b in ((value, expected), (x_ours.grad, x_theirs.grad)):
        assert a is not None
        assert a.dtype == np.dtype(dtype)
        assert a.shape == tuple(b.shape)
        np.testing.assert_allclose(a.numpy(), b.detach().numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_certainty_in_the_wrong_class_costs_100_and_has_a_finite_gradient(dtype: str) -> None:
    # As in PyTorch, which however holds the bound 1e-12 of the gradient's denominator in float32, 4e-9 beside it.
    x = gf.tensor(np.array([0.0, 1.0], dtype), requires_grad=True)
    value = nn.BCELoss(reduction="none")(x, gf.tensor(np.array([1.0, 0.0], dtype)))
    assert value.tolist() == [100.0, 100.0]
    value.sum().backward()
    assert x.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), [-1e12, 1e12], rtol=1e-7)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_reduction_is_checked_when_the_loss_is_made(loss: type[nn.Loss]) -> None:
    name = loss.__name__
    with pytest.raises(errors.ArgumentError) as caught:
        loss(reduction="average")
    assert str(caught.value) == (
        f"{name} got reduction='average'.\n"
        "  why: it is one of 'mean', 'sum', 'none'.\n"
        f"  fix: nn.{name}(reduction='mean')"
    )


def test_label_smoothing_is_checked_when_the_loss_is_made() -> None:
    for wrong in (-0.1, 1.5, float("nan")):
        with pytest.raises(errors.ArgumentError, match=f"CrossEntropyLoss got label_smoothing={wrong}"):
            nn.CrossEntropyLoss(label_smoothing=wrong)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.BCEWithLogitsLoss()])
def test_shapes_that_would_broadcast_are_an_error(loss: nn.Loss) -> None:
    for target in (gf.zeros(5), gf.zeros((1, 5)), gf.zeros((5, 5))):
        with pytest.raises(errors.ShapeError) as caught:
            loss(gf.zeros((5, 1)), target)
        assert caught.value.__notes__ == [f"in {type(loss).__name__}"]


@pytest.mark.parametrize("label", [4, -1])
@pytest.mark.parametrize("options", [{}, {"reduction": "sum"}, {"label_smoothing": 0.1}, {"weight": [1.0] * 4}])
def test_a_label_out_of_range_is_an_error(label: int, options: dict[str, Any]) -> None:
    with pytest.raises((errors.ArgumentError, errors.IndexRangeError)):
        nn.CrossEntropyLoss(**options)(gf.zeros((2, 4)), gf.tensor([0, label]))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_labels_of_any_integer_dtype(dtype: str) -> None:
    loss = nn.CrossEntropyLoss()
    x = gf.tensor(scores)
    assert loss(x, gf.tensor(labels.astype(dtype))).item() == loss(x, gf.tensor(labels)).item()


def test_weights_are_buffers() -> None:
    loss = nn.CrossEntropyLoss(weight=[1.0, 2.0]).to(gf.float64)
    assert list(loss.parameters()) == []
    assert [(name, b.dtype) for name, b in loss.named_buffers()] == [("weight", gf.float64)]
    loss.load_state_dict({"weight": np.array([3.0, 4.0])})
    assert loss.weight is not None
    assert loss.weight.tolist() == [3.0, 4.0]
    assert repr(loss) == "CrossEntropyLoss(reduction='mean', ignore_index=-100, label_smoothing=0.0)"


@given(st.integers(1, 6), st.integers(1, 5), st.floats(-1e4, 1e4), st.integers(0, 9))
def test_one_hot_targets_equal_labels_at_any_scale(n: int, classes: int, shift: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x = gf.tensor(draw.normal(size=(n, classes)) * abs(shift) + shift)
    t = draw.integers(0, classes, size=n)
    by_label = nn.CrossEntropyLoss()(x, gf.tensor(t)).item()
    by_probability = nn.CrossEntropyLoss()(x, gf.tensor(np.eye(classes)[t])).item()
    assert np.isfinite(by_label)
    assert by_label == pytest.approx(by_probability, rel=1e-12, abs=1e-12)
    assert by_label >= 0


@given(st.floats(-1e4, 1e4), st.floats(0, 1))
def test_binary_cross_entropy_is_softmax_cross_entropy_of_two_classes(x: float, t: float) -> None:
    binary = nn.BCEWithLogitsLoss()(gf.tensor([x], dtype=gf.float64), gf.tensor([t], dtype=gf.float64)).item()
    pair = nn.CrossEntropyLoss()(
        gf.tensor([[0.0, x]], dtype=gf.float64), gf.tensor([[1 - t, t]], dtype=gf.float64)
    ).item()
    assert binary == pytest.approx(pair, rel=1e-9, abs=1e-9)
