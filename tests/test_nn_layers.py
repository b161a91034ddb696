"""Every layer that gradflow.nn exports, against PyTorch; initial values, vectors of weights, clipping."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn

DTYPES = {"float32": 2e-6, "float64": 1e-14}

# layer -> cases: ours, the same in PyTorch, the input's shape
Case = tuple[Callable[[], nn.Module], Callable[[Any], Any], tuple[int, ...]]
LAYERS: dict[type[nn.Module], list[Case]] = {
    nn.Linear: [
        (lambda: nn.Linear(4, 3), lambda torch: torch.nn.Linear(4, 3), (5, 4)),
        (lambda: nn.Linear(4, 3, bias=False), lambda torch: torch.nn.Linear(4, 3, bias=False), (2, 5, 4)),
        (lambda: nn.Linear(1, 1), lambda torch: torch.nn.Linear(1, 1), (1,)),
        (lambda: nn.Linear(4, 3), lambda torch: torch.nn.Linear(4, 3), (0, 4)),
    ],
    nn.Identity: [(nn.Identity, lambda torch: torch.nn.Identity(), (2, 3))],
    nn.Flatten: [
        (nn.Flatten, lambda torch: torch.nn.Flatten(), (3, 2, 4)),
        (lambda: nn.Flatten(0, 1), lambda torch: torch.nn.Flatten(0, 1), (3, 2, 4)),
        (lambda: nn.Flatten(-2, -2), lambda torch: torch.nn.Flatten(-2, -2), (3, 2, 4)),
    ],
    nn.ReLU: [(nn.ReLU, lambda torch: torch.nn.ReLU(), (3, 4))],
    nn.GELU: [
        (nn.GELU, lambda torch: torch.nn.GELU(), (3, 4)),
        (lambda: nn.GELU("tanh"), lambda torch: torch.nn.GELU("tanh"), (3, 4)),
    ],
    nn.SiLU: [(nn.SiLU, lambda torch: torch.nn.SiLU(), (3, 4))],
    nn.Dropout: [
        (lambda: nn.Dropout(0.0), lambda torch: torch.nn.Dropout(0.0), (3, 4)),
        (lambda: nn.Dropout(1.0), lambda torch: torch.nn.Dropout(1.0), (3, 4)),
        (lambda: nn.Dropout().eval(), lambda torch: torch.nn.Dropout().eval(), (3, 4)),
    ],
    nn.LayerNorm: [
        (lambda: nn.LayerNorm(4), lambda torch: torch.nn.LayerNorm(4), (5, 4)),
        (lambda: nn.LayerNorm((3, 4), 0.1), lambda torch: torch.nn.LayerNorm((3, 4), 0.1), (2, 5, 3, 4)),
        (lambda: nn.LayerNorm(4, bias=False), lambda torch: torch.nn.LayerNorm(4, bias=False), (4,)),
        (
            lambda: nn.LayerNorm([4], elementwise_affine=False),
            lambda torch: torch.nn.LayerNorm([4], elementwise_affine=False),
            (0, 4),
        ),
    ],
    nn.Embedding: [
        (lambda: nn.Embedding(7, 3), lambda torch: torch.nn.Embedding(7, 3), (5, 4)),
        (lambda: nn.Embedding(7, 3, padding_idx=-2), lambda torch: torch.nn.Embedding(7, 3, padding_idx=-2), (20,)),
        (lambda: nn.Embedding(1, 1), lambda torch: torch.nn.Embedding(1, 1), ()),
        (lambda: nn.Embedding(7, 3), lambda torch: torch.nn.Embedding(7, 3), (2, 0)),
    ],
    nn.Tanh: [(nn.Tanh, lambda torch: torch.nn.Tanh(), (3, 4))],
    nn.Sigmoid: [(nn.Sigmoid, lambda torch: torch.nn.Sigmoid(), (3, 4))],
    nn.Softmax: [
        (nn.Softmax, lambda torch: torch.nn.Softmax(-1), (3, 4)),
        (lambda: nn.Softmax(axis=0), lambda torch: torch.nn.Softmax(0), (3, 4, 2)),
    ],
    nn.LogSoftmax: [
        (nn.LogSoftmax, lambda torch: torch.nn.LogSoftmax(-1), (3, 4)),
        (lambda: nn.LogSoftmax(axis=1), lambda torch: torch.nn.LogSoftmax(1), (3, 4, 2)),
    ],
    nn.Sequential: [
        (
            lambda: nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 2))),
            lambda torch: torch.nn.Sequential(
                torch.nn.Linear(4, 3), torch.nn.Sequential(torch.nn.Tanh(), torch.nn.Linear(3, 2))
            ),
            (5, 4),
        ),
        (
            lambda: nn.Sequential({"hidden": nn.Linear(4, 3), "act": nn.ReLU()}),
            lambda torch: torch.nn.Sequential(OrderedDict(hidden=torch.nn.Linear(4, 3), act=torch.nn.ReLU())),
            (5, 4),
        ),
        (nn.Sequential, lambda torch: torch.nn.Sequential(), (5, 4)),
    ],
    nn.MLP: [
        (
            lambda: nn.MLP([2, 5, 3, 1], nn.Sigmoid),
            lambda torch: torch.nn.Sequential(
                torch.nn.Linear(2, 5), torch.nn.Sigmoid(),
                torch.nn.Linear(5, 3), torch.nn.Sigmoid(),
                torch.nn.Linear(3, 1),
            ),
            (7, 2),
        ),
    ],
    nn.Residual: [
        (lambda: nn.Residual(nn.Linear(4, 4)), lambda torch: bypass(torch, torch.nn.Linear(4, 4), None), (5, 4)),
        (
            lambda: nn.Residual(nn.Linear(4, 3), nn.Tanh(), shortcut=nn.Linear(4, 3, bias=False)),
            lambda torch: bypass(
                torch,
                torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh()),
                torch.nn.Linear(4, 3, bias=False),
            ),
            (5, 4),
        ),
    ],
}  # fmt: skip
CASES = [
    pytest.param(*case, id=f"{layer.__name__}-{i}") for layer, cases in LAYERS.items() for i, case in enumerate(cases)
]


def bypass(torch: Any, body: Any, shortcut: Any) -> Any:
    class Residual(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.body, self.shortcut = body, shortcut

        def forward(self, x: Any) -> Any:
            return self.body(x) + (x if self.shortcut is None else self.shortcut(x))

    return Residual()


def exported_layers() -> set[type[nn.Module]]:
    exported = {value for name in nn.__all__ if isinstance(value := getattr(nn, name), type)}
    return {
        cls for cls in exported if issubclass(cls, nn.Module) and not issubclass(cls, nn.Loss) and cls is not nn.Module
    }


def test_every_exported_layer_has_a_case() -> None:
    assert set(LAYERS) == exported_layers()


def test_every_module_class_is_exported() -> None:
    written = {cls for cls in _subclasses(nn.Module) if cls.__module__.startswith("gradflow.nn.")}
    assert written == {value for name in nn.__all__ if isinstance(value := getattr(nn, name), type)} & written


def _subclasses(cls: type) -> set[type]:
    return {cls}.union(*(_subclasses(sub) for sub in cls.__subclasses__()))


# ------------------------------------------------------------------------------------------------------ against PyTorch
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("ours", "theirs", "shape"), CASES)
def test_values_and_gradients_are_pytorchs(ours: Any, theirs: Any, shape: tuple[int, ...], dtype: str) -> None:
    torch = pytest.importorskip("torch")
    gf.manual_seed(1)
    rng = np.random.default_rng(2)
    model = ours().to(getattr(gf, dtype))
    reference = theirs(torch).to(getattr(torch, dtype))
    state = model.state_dict()
    assert [(name, tuple(value.shape)) for name, value in reference.state_dict().items()] == [
        (name, value.shape) for name, value in state.items()
    ]
    model.load_state_dict(reference.state_dict())

    x_values: Any = rng.normal(size=shape).astype(dtype)
    if isinstance(model, nn.Embedding):
        x_values = rng.integers(0, model.num_embeddings, shape)
    real = not isinstance(model, nn.Embedding)
    x = gf.tensor(x_values, requires_grad=real)
    x_reference = torch.tensor(x_values, requires_grad=real)
    y, y_reference = model(x), reference(x_reference)
    assert y.shape == tuple(y_reference.shape)
    assert y.dtype == np.dtype(dtype)
    cotangent = rng.normal(size=y.shape).astype(dtype)
    y.backward(gf.tensor(cotangent))
    y_reference.backward(torch.tensor(cotangent))

    close(y, y_reference, dtype)
    if real:
        close(x.grad, x_reference.grad, dtype)
    for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
        close(parameter.grad, other.grad, dtype)


def close(ours: Any, theirs: Any, dtype: str) -> None:
    ours, theirs = ours.numpy(), theirs.detach().numpy()
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=10 * DTYPES[dtype], atol=DTYPES[dtype])


@given(
    lead=st.lists(st.integers(0, 4), max_size=3),
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_linear_is_x_times_weight_transposed_plus_bias(lead: list[int], n: int, m: int, bias: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = nn.Linear(n, m, bias, dtype=gf.float64)
    x = rng.normal(size=(*lead, n))
    expected = x @ layer.weight.numpy().T
    if layer.bias is not None:
        expected += layer.bias.numpy()
    np.testing.assert_allclose(layer(gf.tensor(x)).numpy(), expected, rtol=1e-12, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- Linear
def test_linear_begins_as_pytorchs() -> None:
    gf.manual_seed(0)
    layer = nn.Linear(400, 300)
    for values in (layer.weight.numpy(), layer.bias.numpy()):  # type: ignore[union-attr]
        assert np.abs(values).max() <= 1 / 20
        assert np.abs(values).max() > 0.99 / 20
        assert values.std() == pytest.approx(1 / 20 / math.sqrt(3), rel=0.05)
    gf.manual_seed(0)
    again = nn.Linear(400, 300)
    assert np.array_equal(again.weight.numpy(), layer.weight.numpy())
    assert not np.array_equal(nn.Linear(400, 300).weight.numpy(), layer.weight.numpy())


def test_linear_keeps_its_memory_order() -> None:
    layer = nn.Linear(4, 3)
    assert layer.weight.numpy().flags.f_contiguous
    layer.load_state_dict(layer.state_dict())
    nn.init.xavier_normal_(layer.weight)
    assert layer.weight.numpy().flags.f_contiguous


def test_linear_dtype_and_backend() -> None:
    layer = nn.Linear(2, 1, dtype=gf.float64, backend="numpy")
    assert {p.dtype for p in layer.parameters()} == {gf.float64}
    assert {p.backend.name for p in layer.parameters()} == {"numpy"}


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        ((0, 1), "in_features=0"),
        ((1, -1), "out_features=-1"),
        ((1, 2.0), "out_features=2.0"),
        ((True, 2), "in_features=True"),
    ],
)
def test_linear_sizes(sizes: Any, name: str) -> None:
    with pytest.raises(errors.ArgumentError, match=f"Linear got {name}.\n  why: a size is a positive integer"):
        nn.Linear(*sizes)


def test_linear_suggests_to_flatten() -> None:
    with pytest.raises(errors.ShapeError, match=r"fix: x\.reshape\(32, 784\), or nn\.Flatten\(\) before this layer"):
        nn.Linear(784, 10)(gf.zeros((32, 28, 28)))
    with pytest.raises(errors.ShapeError, match=r"fix: an input of shape \(\.\.\., 3\)"):
        nn.Linear(3, 1)(gf.tensor(1.0))


def test_linear_passes_other_errors_on() -> None:
    layer = nn.Linear(3, 1)
    layer.weight = gf.Parameter(gf.ones((1, 4)))
    with pytest.raises(errors.ShapeError) as caught:
        layer(gf.ones((2, 3)))
    assert str(caught.value).startswith("linear got input of shape (2, 3): its last axis must be 4.")
    assert caught.value.__notes__ == ["in Linear 3→1"]


# ----------------------------------------------------------------------------------------------------------- Sequential
def test_sequential_is_a_sequence() -> None:
    a, b, c = nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)
    model = nn.Sequential(a, b, c)
    assert len(model) == 3
    assert list(model) == [a, b, c]
    assert (model[0], model[-1]) == (a, c)
    assert [*model[1:]] == [b, c]
    assert list(model[:1].state_dict()) == ["0.weight", "0.bias"]
    assert list(model[2:].state_dict()) == ["2.weight", "2.bias"]
    tail = model[1:].append(nn.Identity())
    assert [name for name, _ in tail.named_children()] == ["1", "2", "3"]
    d = nn.Linear(3, 5)
    model[-1] = d
    assert list(model) == [a, b, d]
    assert model.append(nn.ReLU()) is model
    assert model(gf.ones((4, 2))).shape == (4, 5)
    assert list(model.eval()) == [a, b, d, model[3]]
    with pytest.raises(IndexError):
        model[4]
    assert len(copy.deepcopy(model)) == 4


def test_sequential_with_names() -> None:
    model = nn.Sequential(OrderedDict(hidden=nn.Linear(2, 3), out=nn.Linear(3, 1)))
    assert list(model.state_dict()) == ["hidden.weight", "hidden.bias", "out.weight", "out.bias"]
    assert model.hidden is model[0]  # type: ignore[attr-defined]
    assert [name for name, _ in model.append(nn.Tanh()).named_children()] == ["hidden", "out", "2"]


@pytest.mark.parametrize(
    ("given", "message", "fix"),
    [
        (nn.ReLU, "Sequential got the class ReLU as '0'", r"nn\.ReLU\(\)"),
        (gf.tanh, "Sequential got a function as '0'", r"nn\.Tanh\(\)"),
        ([nn.ReLU()], "Sequential got a list as '0'", r"\*more"),
    ],
)
def test_sequential_takes_modules(given: Any, message: str, fix: str) -> None:
    with pytest.raises(errors.DTypeError, match=f"{message}[^\0]*fix: .*{fix}"):
        nn.Sequential(given)


@pytest.mark.parametrize("name", ["forward", "training", "a.b", 3])
def test_sequential_refuses_names(name: Any) -> None:
    with pytest.raises(errors.ArgumentError, match=f"cannot be called {name!r}"):
        nn.Sequential({name: nn.Tanh()})


# -------------------------------------------------------------------------------------------------------- MLP, Residual
def test_mlp_weight_counts_of_the_lecture() -> None:
    assert nn.MLP([2, 100, 1]).num_parameters() == 401
    assert nn.MLP([2, 10, 10, 1]).num_parameters() == 151
    assert nn.MLP([2, 125, 1]).num_parameters() == 501
    assert nn.MLP([2, 20, 20, 1]).num_parameters() == 501
    assert nn.MLP([2, 10, 20, 10, 1]).num_parameters() == 471
    assert isinstance(nn.MLP([2, 3, 1])[1], nn.ReLU)
    assert len(nn.MLP([2, 1])) == 1
    assert type(nn.MLP([2, 3, 1])[:2]) is nn.Sequential


def test_mlp_needs_two_sizes() -> None:
    with pytest.raises(errors.ArgumentError, match=r"MLP got sizes \[2\]"):
        nn.MLP([2])


def test_residual_shapes() -> None:
    model = nn.Sequential(nn.Residual(nn.Linear(4, 3)))
    with pytest.raises(errors.ShapeError) as caught:
        model(gf.zeros((5, 4)))
    assert str(caught.value) == (
        "model.0 (Residual) cannot add (5, 3) to (5, 4): the shapes must be equal.\n"
        "  why: its body turned an input of shape (5, 4) into (5, 3).\n"
        "  fix: nn.Residual(..., shortcut=nn.Linear(4, 3))"
    )
    with pytest.raises(errors.ShapeError, match="with an s that turns the one shape into the other"):
        nn.Residual(nn.Flatten())(gf.zeros((1, 2, 2)))
    with pytest.raises(errors.ShapeError, match=r"cannot add \(5, 1\) to \(5, 4\)"):  # would broadcast
        nn.Residual(nn.Linear(4, 1))(gf.zeros((5, 4)))


def test_flatten_axes() -> None:
    with pytest.raises(errors.ShapeError, match=r"Flatten got input of shape \(3,\): it has no axes 1 to -1"):
        nn.Flatten()(gf.zeros(3))


# ------------------------------------------------------------------------------------------------------- initial values
INITS: dict[str, tuple[Callable[..., gf.Tensor], Callable[[int, int], float]]] = {
    "uniform_": (lambda t, **g: nn.init.uniform_(t, -0.5, 0.5, **g), lambda n, m: 0.5 / math.sqrt(3)),
    "normal_": (lambda t, **g: nn.init.normal_(t, 0.0, 0.3, **g), lambda n, m: 0.3),
    "xavier_uniform_": (lambda t, **g: nn.init.xavier_uniform_(t, 2.0, **g), lambda n, m: 2 * math.sqrt(2 / (n + m))),
    "xavier_normal_": (nn.init.xavier_normal_, lambda n, m: math.sqrt(2 / (n + m))),
    "kaiming_uniform_": (nn.init.kaiming_uniform_, lambda n, m: math.sqrt(2 / n)),
    "kaiming_normal_": (
        lambda t, **g: nn.init.kaiming_normal_(t, mode="fan_out", nonlinearity="tanh", **g),
        lambda n, m: 5 / 3 / math.sqrt(m),
    ),
}


@pytest.mark.parametrize("name", INITS)
def test_random_initial_values(name: str) -> None:
    fill, std = INITS[name]
    n, m = 300, 200
    weight = gf.Parameter(gf.zeros((m, n)))
    assert fill(weight, generator=gf.Generator(3)) is weight
    assert weight.requires_grad
    assert weight.is_leaf
    assert weight.numpy().std() == pytest.approx(std(n, m), rel=0.02)
    assert abs(weight.numpy().mean()) < 0.02 * std(n, m)
    first = weight.tolist()
    assert fill(weight, generator=gf.Generator(3)).tolist() == first
    gf.manual_seed(5)
    second = fill(weight).tolist()
    gf.manual_seed(5)
    assert fill(weight).tolist() == second != first


def test_constant_initial_values() -> None:
    weight = gf.Parameter(gf.zeros((2, 2), dtype=gf.float64))
    assert nn.init.ones_(weight).tolist() == [[1.0, 1.0]] * 2
    assert nn.init.constant_(weight, 0.5).tolist() == [[0.5, 0.5]] * 2
    assert nn.init.zeros_(weight).tolist() == [[0.0, 0.0]] * 2
    assert nn.init.zeros_(gf.Parameter(1.0)).item() == 0.0


def test_gains_and_fans_are_pytorchs() -> None:
    init = pytest.importorskip("torch").nn.init
    for name in ("linear", "sigmoid", "tanh", "relu", "selu", "leaky_relu"):
        assert nn.init.calculate_gain(name) == pytest.approx(init.calculate_gain(name))
    assert nn.init.calculate_gain("leaky_relu", 0.2) == pytest.approx(init.calculate_gain("leaky_relu", 0.2))
    kernel = gf.zeros((8, 4, 3, 5))
    bound = nn.init.kaiming_uniform_(kernel, a=math.sqrt(5)).numpy().max()
    assert bound == pytest.approx(1 / math.sqrt(4 * 15), rel=0.02)


def test_wrong_initialisers() -> None:
    with pytest.raises(errors.ShapeError, match=r"a tensor of shape \(3,\) has no fan_in and fan_out"):
        nn.init.xavier_uniform_(gf.zeros(3))
    with pytest.raises(errors.ArgumentError, match="kaiming got mode='fan'"):
        nn.init.kaiming_normal_(gf.zeros((3, 3)), mode="fan")
    with pytest.raises(errors.ArgumentError, match="calculate_gain does not know 'rely'"):
        nn.init.calculate_gain("rely")


# -------------------------------------------------------------------------------------------- all weights as one vector
def test_vector_of_weights() -> None:
    torch = pytest.importorskip("torch")
    model, other = nn.MLP([2, 3, 1]), nn.MLP([2, 3, 1])
    reference = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    model.load_state_dict(reference.state_dict())
    w = nn.utils.parameters_to_vector(model.parameters())
    np.testing.assert_array_equal(
        w.detach().numpy(), torch.nn.utils.parameters_to_vector(reference.parameters()).detach().numpy()
    )
    nn.utils.vector_to_parameters(w, other.parameters())
    assert all(p.requires_grad for p in other.parameters())
    assert {k: v.tolist() for k, v in other.state_dict().items()} == {
        k: v.tolist() for k, v in model.state_dict().items()
    }
    for wrong in (gf.zeros(12), gf.zeros(14), gf.zeros((13, 1))):
        with pytest.raises(errors.ShapeError, match="for 13 weights"):
            nn.utils.vector_to_parameters(wrong, other.parameters())


def test_functional_call() -> None:
    model = nn.MLP([2, 3, 1], nn.Tanh)
    x = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    before = list(model.parameters())
    model(x).sum().backward()
    expected = nn.utils.parameters_to_vector([p.grad for p in before if p.grad is not None])
    model.zero_grad()
    w = nn.utils.parameters_to_vector(model.parameters()).detach().requires_grad_()
    nn.functional_call(model, w, x).sum().backward()
    assert w.grad is not None
    np.testing.assert_allclose(w.grad.numpy(), expected.numpy(), rtol=1e-6)
    assert all(p.grad is None for p in before)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))

    named = {"2.bias": gf.tensor([100.0], requires_grad=True)}
    y = nn.functional_call(model, named, x)
    np.testing.assert_allclose(y.detach().numpy() - 100, (model(x) - model[2].bias).detach().numpy(), rtol=1e-4)  # type: ignore[attr-defined]
    y.sum().backward()
    assert named["2.bias"].grad is not None
    assert named["2.bias"].grad.tolist() == [2.0]


class Tied(nn.Module):
    def __init__(self) -> None:
        self.first = gf.Parameter([2.0])
        self.others = [self.first, gf.Parameter([5.0])]
        self.fixed = (gf.Parameter([1.0]),)

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        return x * self.first * self.others[0] * self.others[1] * self.fixed[0]


def test_functional_call_replaces_a_tied_parameter_everywhere() -> None:
    model = Tied()
    for name in ("first", "others.0"):
        assert nn.functional_call(model, {name: gf.tensor([3.0])}, 1.0).item() == 45.0
    three = gf.tensor([3.0])
    assert nn.functional_call(model, {"first": three, "others.0": three}, 1.0).item() == 45.0
    assert model(1.0).item() == 20.0
    with pytest.raises(errors.ArgumentError, match=r"two Tensors for one parameter, the second as 'others\.0'"):
        nn.functional_call(model, {"first": three, "others.0": gf.tensor([3.0])}, 1.0)


def test_functional_call_gives_everything_back() -> None:
    model = nn.MLP([2, 3, 1])
    before = list(model.parameters())
    with pytest.raises(errors.ShapeError, match=r"model\.0 \(Linear 2→3\) got input of shape \(4,\)"):
        nn.functional_call(model, dict(model.named_parameters()), gf.ones(4))
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    x = gf.ones(2)
    with pytest.raises(errors.ArgumentError, match=r"functional_call got '3\.weight', which MLP does not have"):
        nn.functional_call(model, {"3.weight": gf.ones(3)}, x)
    with pytest.raises(errors.ShapeError, match=r"functional_call got '0\.bias' of shape \(2,\)"):
        nn.functional_call(model, {"0.bias": gf.ones(2)}, x)
    with pytest.raises(errors.DTypeError, match=r"functional_call got a ndarray as '0\.bias'"):
        nn.functional_call(model, {"0.bias": np.ones(3)}, x)  # type: ignore[dict-item]
    with pytest.raises(errors.ShapeError, match=r"a vector of shape \(3,\) for 13 weights"):
        nn.functional_call(model, gf.ones(3), x)
    with pytest.raises(errors.DTypeError, match=r"cannot replace 'fixed\.0'.*\n.*tuple"):
        nn.functional_call(Tied(), {"fixed.0": gf.ones(1)}, 1.0)


# ------------------------------------------------------------------------------------------------------------- clipping
def with_gradients(scale: float, dtype: str = "float32") -> tuple[list[gf.Parameter], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    parameters = [gf.Parameter(gf.zeros(shape, dtype=dtype)) for shape in ((3, 4), (4,), (), (2,))]
    gradients = [(scale * rng.normal(size=p.shape)).astype(dtype) for p in parameters[:-1]]
    for parameter, gradient in zip(parameters, gradients, strict=False):
        parameter.grad = gf.tensor(gradient)
    return parameters, gradients


@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 0.0])
def test_clip_grad_norm_is_pytorchs(scale: float, norm_type: float) -> None:
    torch = pytest.importorskip("torch")
    parameters, gradients = with_gradients(scale)
    references = [torch.zeros(p.shape, requires_grad=True) for p in parameters]
    for reference, gradient in zip(references, gradients, strict=False):
        reference.grad = torch.tensor(gradient)
    norm = nn.utils.clip_grad_norm_(parameters, 1.0, norm_type)
    expected = torch.nn.utils.clip_grad_norm_(references, 1.0, norm_type)
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert parameters[-1].grad is None
    for parameter, reference in zip(parameters[:-1], references, strict=False):
        assert parameter.grad is not None
        np.testing.assert_allclose(parameter.grad.numpy(), reference.grad.numpy(), rtol=1e-5)


def test_clip_grad_norm_of_huge_gradients() -> None:
    """Exploding gradients are what clipping is for: their squares must not overflow."""
    parameters, gradients = with_gradients(1e30)
    exact = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients))
    assert nn.utils.clip_grad_norm_(parameters, 1.0).item() == pytest.approx(exact, rel=1e-5)
    after = [p.grad.numpy() for p in parameters if p.grad is not None]
    assert math.sqrt(sum(float((g**2).sum()) for g in after)) == pytest.approx(1.0, rel=1e-5)


def test_clip_grad_norm_takes_any_iterable() -> None:
    parameter = gf.Parameter([1.0, 1.0])
    assert nn.utils.clip_grad_norm_([parameter], 1.0).item() == 0.0
    parameter.grad = gf.tensor([3.0, 4.0])
    assert nn.utils.clip_grad_norm_(parameter, 10.0).item() == 5.0
    assert nn.utils.clip_grad_norm_(iter([parameter]), 1.0).item() == 5.0
    double = gf.Parameter(gf.zeros(1, dtype=gf.float64))
    double.grad = gf.tensor([12.0], dtype=gf.float64)
    parameter.grad = gf.tensor([3.0, 4.0])
    assert nn.utils.clip_grad_norm_([parameter, double], 1.0).item() == pytest.approx(13.0)
    assert (parameter.grad.dtype, double.grad.dtype) == (gf.float32, gf.float64)
    with pytest.raises(errors.ArgumentError, match="max_norm=-1"):
        nn.utils.clip_grad_norm_([parameter], -1.0)
    with pytest.raises(errors.ArgumentError, match="max_norm=nan"):
        nn.utils.clip_grad_norm_([parameter], math.nan)


def test_clip_grad_value() -> None:
    parameters, gradients = with_gradients(3.0)
    nn.utils.clip_grad_value_(parameters, 0.5)
    for parameter, gradient in zip(parameters, gradients, strict=False):
        assert parameter.grad is not None
        np.testing.assert_array_equal(parameter.grad.numpy(), gradient.clip(-0.5, 0.5))
    nn.utils.clip_grad_value_(parameters[0], 0.25)
    assert abs(parameters[0].grad.numpy()).max() == 0.25  # type: ignore[union-attr]
    with pytest.raises(errors.ArgumentError, match="clip_value=-1"):
        nn.utils.clip_grad_value_(parameters, -1.0)
