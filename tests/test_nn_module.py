"""Module: what it finds and how it names it, its state, its errors, and what it does not require of a subclass."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gradflow as gf
from gradflow import errors, nn

sigm = gf.sigmoid


class MLP(nn.Module):  # the lecture's slide, verbatim: no super().__init__()
    def __init__(self, n1=10, nIn=2, nOut=1):  # type: ignore[no-untyped-def]
        self.l1 = nn.Linear(nIn, n1)
        self.l2 = nn.Linear(n1, nOut)

    def forward(self, x):  # type: ignore[no-untyped-def]
        h = sigm(self.l1(x))
        return self.l2(h)


class Scale(nn.Module):
    """One parameter, two buffers of which one is not saved."""

    def __init__(self, *shape: int) -> None:
        self.factor = gf.Parameter(gf.ones(shape))
        self.calls = nn.Buffer(0)
        self.last = nn.Buffer(gf.zeros(shape), persistent=False)

    def forward(self, x: gf.Tensor) -> gf.Tensor:
        self.calls += 1
        return x * self.factor


class Pair(NamedTuple):
    first: Any
    second: Any


class Holder(nn.Module):
    """Holds whatever a test gives it."""

    def __init__(self, **held: Any) -> None:
        vars(self).update(held)

    def forward(self, x: gf.Tensor) -> Any:
        return x


def names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def values(model: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in model.state_dict().items()}


# --------------------------------------------------------------------------------------------------- a user's own class
def test_the_slide_class_trains() -> None:
    gf.manual_seed(0)
    model = MLP()
    assert model.training
    assert model.num_parameters() == 41
    x = gf.random.uniform((64, 2), low=-1, high=1)
    t = gf.sigmoid(4 * x[:, :1] - 2 * x[:, 1:])
    loss_fn = nn.MSELoss()
    first = loss_fn(model(x), t).item()
    for _ in range(300):
        loss = loss_fn(model(x), t)
        model.zero_grad()
        loss.backward()
        with gf.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p -= 0.2 * p.grad
    assert loss.item() < 0.1 * first


def test_no_forward() -> None:
    class Net(nn.Module):
        pass

    with pytest.raises(errors.DTypeError, match=r"Net has no forward\(\).*\n.*\n.*def forward\(self, x\)"):
        Net()(1)  # type: ignore[abstract]


def test_assignment_is_plain() -> None:
    assert "__setattr__" not in vars(nn.Module)
    assert "__getattr__" not in vars(nn.Module)
    model = MLP()
    model.l1 = nn.Linear(2, 10, bias=False)
    del model.l2
    assert names(model) == ["l1.weight"]


def test_attributes_may_hide_methods() -> None:
    """`self.modules = [...]` is a natural thing to write; the tree is walked all the same."""
    model = Holder(modules=[nn.Linear(2, 2)], children=nn.Tanh(), named_parameters=1)
    assert len(list(model.parameters())) == 2
    assert not model.eval().modules[0].training  # type: ignore[index]
    assert set(model.state_dict()) == {"modules.0.weight", "modules.0.bias"}


# ---------------------------------------------------------------------------------------------------- what it discovers
def test_everything_in_containers_is_found() -> None:
    model = Holder(
        layers=[nn.Linear(1, 1), (nn.Linear(1, 1), {"deep": [nn.Linear(1, 1)]})],
        by_key=OrderedDict(a=nn.Linear(1, 1), b=gf.Parameter([1.0])),
        pair=Pair(nn.Linear(1, 1), 3),
        scale=gf.Parameter([1.0]),
        numbers=[1, 2, 3],
        text="layers",
        plain=gf.ones(3),
    )
    assert names(model) == [
        "scale",
        "layers.0.weight", "layers.0.bias",
        "layers.1.0.weight", "layers.1.0.bias",
        "layers.1.1.deep.0.weight", "layers.1.1.deep.0.bias",
        "by_key.b", "by_key.a.weight", "by_key.a.bias",
        "pair.0.weight", "pair.0.bias",
    ]  # fmt: skip
    below = ["layers.0", "layers.1.0", "layers.1.1.deep.0", "by_key.a", "pair.0"]
    assert [name for name, _ in model.named_children()] == below
    assert [name for name, _ in model.named_modules()] == ["", *below]
    assert len(list(model.children())) == 5
    assert len(list(model.modules())) == 6
    assert len(list(model.parameters())) == 12


def test_order_is_pytorchs() -> None:
    torch = pytest.importorskip("torch")

    def build(nn: Any, parameter: Any, buffer: Any, many: Any) -> Any:
        class Inner(nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.running = buffer()
                self.b = parameter()
                self.a = parameter()

        class Net(nn.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.first = Inner()
                self.gain = parameter()
                self.layers = many([nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 3), nn.Tanh()), Inner()])
                self.offset = parameter()
                self.shared = self.first

        return Net()

    ours = build(nn, lambda: gf.Parameter(gf.ones(2)), lambda: nn.Buffer(gf.ones(2)), list)
    theirs = build(
        torch.nn, lambda: torch.nn.Parameter(torch.ones(2)), lambda: torch.nn.Buffer(torch.ones(2)), torch.nn.ModuleList
    )
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert names(ours) == [name for name, _ in theirs.named_parameters()]
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in theirs.named_buffers()]


def test_buffers() -> None:
    model = Holder(inner=Scale(2), plain=gf.ones(2), cached=nn.Buffer([1.0, 2.0]))
    assert [name for name, _ in model.named_buffers()] == ["cached", "inner.calls", "inner.last"]
    assert [buffer.persistent for buffer in model.buffers()] == [True, True, False]
    assert list(model.state_dict()) == ["cached", "inner.factor", "inner.calls"]
    model.inner(gf.ones(2))
    assert isinstance(model.inner.calls, nn.Buffer)
    assert model.inner.calls.item() == 1
    assert not model.cached.requires_grad
    shared = gf.zeros(2)
    buffer = nn.Buffer(shared)
    shared += 1
    assert buffer.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "held",
    [
        (nn.Linear(1, 1) for _ in range(2)),
        map(nn.Linear, [1], [1]),
        zip([nn.Linear(1, 1)], [1], strict=True),
        {nn.Linear(1, 1)},
        frozenset([gf.Parameter([1.0])]),
    ],
)
def test_what_cannot_be_searched_is_refused(held: Any) -> None:
    model = Holder(block=Holder(layers=held))
    kind = type(held).__name__
    message = rf"model\.block\.layers is a {kind}, in which parameters cannot be found"
    with pytest.raises(errors.DTypeError, match=message):
        list(model.parameters())


def test_module_lists_are_lists() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'ModuleList'[^\0]*fix: self\.layers = \[nn\.Linear"):
        _ = nn.ModuleList
    with pytest.raises(AttributeError, match=r"no attribute 'Linaer'"):
        _ = nn.Linaer


def test_a_set_of_other_things_is_no_harm() -> None:
    assert names(Holder(seen={1, 2})) == []


# --------------------------------------------------------------------------------------------------------- tied, cyclic
def tied() -> Holder:
    table = gf.Parameter([[1.0, 2.0]])
    return Holder(encoder=table, decoder=[table], both=Scale(1))


def test_tied_parameters_count_once_and_are_saved_twice() -> None:
    model = tied()
    assert names(model) == ["encoder", "both.factor"]
    assert model.num_parameters() == 3
    state = model.state_dict()
    assert list(state) == ["encoder", "decoder.0", "both.factor", "both.calls"]
    assert state["encoder"] is state["decoder.0"]


def test_tied_modules_have_every_name() -> None:
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    assert names(model) == ["0.weight", "0.bias"]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert repr(model).count("Linear") == 2


def test_loading_tied_parameters() -> None:
    model = tied()
    state = model.state_dict()
    state["decoder.0"] = gf.tensor([[5.0, 6.0]])
    for strict in (True, False):
        with pytest.raises(errors.StateDictError, match=r"decoder\.0 differs from encoder, to which it is tied"):
            model.load_state_dict(state, strict=strict)
    assert model.encoder.tolist() == [[1.0, 2.0]]
    state["encoder"] = np.array([[5.0, 6.0]])
    model.load_state_dict(state)
    assert model.encoder.tolist() == [[5.0, 6.0]]
    del state["encoder"]  # one name is enough: the safetensors package saves no more
    state["decoder.0"] = gf.tensor([[7.0, np.nan]])
    model.load_state_dict(state)
    assert model.decoder[0].tolist()[0][0] == 7.0
    state["encoder"] = state["decoder.0"].copy()  # equal, though NaN is not equal to itself
    model.load_state_dict(state)


def test_cycles_end() -> None:
    parent = Holder(child=Scale(1), items=[])
    parent.child.parent = parent
    parent.me = parent
    parent.items.append(parent.items)
    sibling = Scale(1)
    parent.child.sibling, sibling.sibling = sibling, parent.child
    assert names(parent) == ["child.factor", "child.sibling.factor"]
    assert [name for name, _ in parent.named_modules()] == ["", "child", "child.sibling"]
    assert "child.sibling.calls" in parent.state_dict()
    assert "Scale" in repr(parent)
    assert not parent.eval().child.training
    twin = copy.deepcopy(parent)
    assert twin.child.parent is twin
    assert twin.items[0] is twin.items
    twin.load_state_dict(parent.state_dict())


def test_modules_that_all_know_one_another() -> None:
    """Twelve of them: a walk along every path would take 12! steps."""
    model = Holder(nodes=[Scale(1) for _ in range(12)])
    for node in model.nodes:
        node.others = model.nodes
    assert model.num_parameters() == 12
    assert sorted(name for name in model.state_dict() if name.endswith("factor")) == sorted(names(model))
    assert repr(model).count("Scale") == 12


def test_a_tree_a_thousand_deep() -> None:
    model: nn.Module = nn.Linear(1, 1)
    for _ in range(1500):
        model = Holder(inner=[model])
    assert names(model) == ["inner.0." * 1500 + "weight", "inner.0." * 1500 + "bias"]
    assert len(list(model.modules())) == 1501
    model.load_state_dict(model.state_dict())
    assert len(repr(model).splitlines()) == 3001
    lists: Any = [gf.Parameter([1.0])]
    for _ in range(1500):
        lists = [lists]
    assert Holder(lists=lists).num_parameters() == 1


def test_an_endless_forward_is_a_recursion_error() -> None:
    class Endless(nn.Module):
        def forward(self, x: Any) -> Any:
            return self(x)

    with pytest.raises(RecursionError):
        Endless()(1)


# ----------------------------------------------------------------------------------------------- done to the whole tree
def test_train_and_eval() -> None:
    model = Holder(layers=[nn.Linear(1, 1), {"a": nn.Tanh()}])
    assert "training" not in vars(model)
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    model.layers[0].train()
    assert [module.training for module in model.modules()] == [False, True, False]
    assert model.train() is model
    assert all(module.training for module in model.modules())
    assert nn.Module.training


def test_zero_grad_and_freezing() -> None:
    model = MLP()
    model(gf.ones((3, 2))).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    assert model.requires_grad_(False) is model
    assert not model(gf.ones((3, 2))).requires_grad
    model.zero_grad()
    model.l2.requires_grad_()
    model(gf.ones((3, 2))).sum().backward()
    assert [p.grad is not None for p in model.parameters()] == [False, False, True, True]


def test_apply_sees_every_module() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Tanh()))
    assert model.apply(lambda module: seen.append(type(module).__name__)) is model
    assert seen == ["Sequential", "Linear", "Sequential", "Tanh"]


def test_to_a_dtype_keeps_the_objects() -> None:
    model = Holder(inner=Scale(2), layer=nn.Linear(2, 1))
    model.layer.bias.requires_grad_(False)
    model.layer(model.inner(gf.ones(2))).backward()
    before = list(model.parameters())
    grad = model.layer.weight.grad.tolist()
    assert model.to(gf.float64) is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert {p.dtype for p in model.parameters()} == {gf.float64}
    assert model.inner.calls.dtype == gf.int64
    assert model.inner.last.dtype == gf.float64
    assert model.layer.weight.grad.dtype == gf.float64
    assert model.layer.weight.grad.tolist() == grad
    assert not model.layer.bias.requires_grad
    y = model.layer(model.inner(gf.ones(2, dtype=gf.float64)))
    assert y.dtype == gf.float64
    model.zero_grad()
    y.backward()
    assert model.layer.weight.grad.dtype == gf.float64
    with pytest.raises(errors.DTypeError, match="a module cannot become int64"):
        model.to(gf.int64)


def test_hooks_stay_on_a_parameter_that_moves() -> None:
    model = nn.Linear(2, 1, bias=False)
    remove = model.weight.register_hook(lambda g: 10 * g)
    model.to(gf.float64)
    model(gf.ones(2, dtype=gf.float64)).backward()
    assert model.weight.grad.tolist() == [[10.0, 10.0]]
    remove()
    model.zero_grad()
    model(gf.ones(2, dtype=gf.float64)).backward()
    assert model.weight.grad.tolist() == [[1.0, 1.0]]


def test_to_a_backend() -> None:
    model = MLP().to("numpy")
    assert {p.backend.name for p in model.parameters()} == {"numpy"}
    with pytest.raises(ValueError, match="nonesuch"):
        model.to("nonesuch")


# ------------------------------------------------------------------------------------------------------------ the state
def test_state_dict_is_a_snapshot() -> None:
    model = MLP()
    state = model.state_dict()
    assert list(state) == ["l1.weight", "l1.bias", "l2.weight", "l2.bias"]
    assert not any(value.requires_grad for value in state.values())
    before = {name: value.tolist() for name, value in state.items()}
    nn.init.zeros_(model.l1.weight)
    assert {name: value.tolist() for name, value in state.items()} == before
    model.load_state_dict(state)
    assert values(model) == before


def test_loading_is_in_place_and_casts() -> None:
    model = MLP(n1=3)
    before = list(model.parameters())
    arrays = {name: np.ones(p.shape) for name, p in model.named_parameters()}
    assert model.load_state_dict(arrays) == ([], [])
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert {p.dtype for p in model.parameters()} == {gf.float32}
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert model(gf.ones((1, 2))).item() == pytest.approx(1 + 3 / (1 + np.exp(-3)))
    arrays["l1.weight"][...] = 7  # what was loaded is a copy
    assert model.l1.weight.tolist() == np.ones((3, 2)).tolist()
    model.load_state_dict({name: np.full(p.shape, 2, np.int32) for name, p in model.named_parameters()})
    assert model.l2.bias.tolist() == [2.0]


def test_loading_views_of_itself() -> None:
    model = Holder(a=gf.Parameter([1.0, 2.0]), b=gf.Parameter([3.0, 4.0]))
    model.load_state_dict({"a": model.b.detach(), "b": model.a.detach()})
    assert (model.a.tolist(), model.b.tolist()) == ([3.0, 4.0], [1.0, 2.0])


def test_a_pytorch_state_dict_loads() -> None:
    torch = pytest.importorskip("torch")
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    ours = nn.MLP([3, 4, 2])
    ours.load_state_dict(theirs.state_dict())
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    assert np.allclose(ours(gf.tensor(x)).numpy(), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
    theirs.load_state_dict({name: torch.from_numpy(value.numpy().copy()) for name, value in ours.state_dict().items()})


def test_one_error_names_everything() -> None:
    model = Holder(a=nn.Linear(2, 3), b=nn.Linear(3, 1), count=nn.Buffer(0))
    before = values(model)
    state: dict[str, Any] = {name: np.zeros(np.shape(value)) for name, value in before.items()}
    del state["a.bias"]
    state["count"] = np.array(0.5)
    state["head.weight"] = np.zeros(2)
    state["a.weight"] = np.zeros((3, 2, 1))
    state["b.weight"] = np.array([["x", "y", "z"]])
    state["b.bias"] = np.ones(1)  # this one would fit
    with pytest.raises(errors.StateDictError) as caught:
        model.load_state_dict(state)
    assert str(caught.value).splitlines()[:6] == [
        "the state dict does not fit Holder; nothing was loaded.",
        "  missing: a.bias",
        "  unexpected: head.weight",
        "  count holds float64 where the model has int64",
        "  a.weight has shape (3, 2, 1) where the model has (3, 2)",
        "  b.weight holds <U1 where the model has float32",
    ]
    assert "why: " in str(caught.value)
    assert "fix: model.load_state_dict(state, strict=False)" in str(caught.value)
    assert values(model) == before
    result = model.load_state_dict(state, strict=False)
    assert result.missing_keys == ["a.bias", "count", "a.weight", "b.weight"]
    assert result.unexpected_keys == ["head.weight", "count", "a.weight", "b.weight"]
    assert values(model) == {**before, "b.bias": [1.0]}


@pytest.mark.parametrize("value", [[[1.0], [2.0, 3.0]], object(), "text", None, np.array([1j, 2j])])
def test_values_that_are_no_numbers(value: Any) -> None:
    model = Holder(a=gf.Parameter([1.0, 2.0]))
    with pytest.raises(errors.StateDictError, match=r"\n  a (cannot be read as an array|holds)"):
        model.load_state_dict({"a": value})


def test_the_fix_names_a_prefix() -> None:
    model = MLP()
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    with pytest.raises(errors.StateDictError, match=r"fix: load_state_dict\(\{name.removeprefix\('module\.'\): value"):
        model.load_state_dict(state)


def test_the_fix_names_a_lost_buffer() -> None:
    model = Scale(1)
    model.calls = model.calls + 1  # type: ignore[assignment]
    state = model.state_dict()
    assert list(state) == ["factor"]
    with pytest.raises(errors.StateDictError, match=r"fix: if a buffer was lost by an assignment, write into it"):
        Scale(1).load_state_dict(state)


def test_not_a_mapping() -> None:
    with pytest.raises(errors.DTypeError, match=r"load_state_dict got a str.*\n.*\n.*gf\.load\(path\)"):
        MLP().load_state_dict("model.safetensors")  # type: ignore[arg-type]


def test_names_that_collide() -> None:
    model = Holder(layers={"0": nn.Linear(1, 1), 0: nn.Linear(1, 1)})
    with pytest.raises(errors.StateDictError, match=r"two tensors of Holder are both named 'layers\.0\.weight'"):
        model.state_dict()


# ------------------------------------------------------------------------------------------------------ copies, pickles
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles(duplicate: Any) -> None:
    model = tied()
    model.eval()
    twin = duplicate(model)
    assert values(twin) == values(model)
    assert twin.encoder is twin.decoder[0]
    assert twin.encoder is not model.encoder
    assert not twin.both.training
    assert [(type(b), b.persistent) for b in twin.buffers()] == [(type(b), b.persistent) for b in model.buffers()]
    nn.init.zeros_(twin.encoder)
    assert model.encoder.tolist() == [[1.0, 2.0]]
    layers = duplicate(nn.MLP([2, 3, 1]))
    assert layers(gf.ones(2)).shape == (1,)


# ----------------------------------------------------------------------------------------------------------------- repr
def test_repr_is_a_tree() -> None:
    model = Holder(
        layers=[nn.Linear(2, 3, bias=False), nn.Sequential(nn.Tanh(), nn.Softmax(axis=0))],
        rate=0.5,
        _hidden=1,
        name="net",
    )
    assert repr(model.eval()) == (
        "Holder(\n"
        "  rate=0.5, name='net'\n"
        "  (layers.0): Linear(in_features=2, out_features=3)\n"
        "  (layers.1): Sequential(\n"
        "    (0): Tanh()\n"
        "    (1): Softmax(axis=0)\n"
        "  )\n"
        ")"
    )
    assert repr(nn.Sequential()) == "Sequential()"


# ----------------------------------------------------------------------------------------------- where an error is from
class Broken(nn.Module):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def forward(self, x: Any) -> Any:
        raise self.error


def test_a_shape_error_names_the_path() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            self.layers = [nn.Tanh(), nn.Tanh(), nn.Linear(128, 10)]

        def forward(self, x: gf.Tensor) -> Any:
            for layer in self.layers:
                x = layer(x)
            return x

    with pytest.raises(errors.ShapeError) as caught:
        Net()(gf.zeros((32, 64)))
    assert str(caught.value) == (
        "model.layers.2 (Linear 128→10) got input of shape (32, 64): its last axis must be 128.\n"
        "  why: it multiplies the last axis by a weight of shape (10, 128).\n"
        "  fix: nn.Linear(64, 10)"
    )
    assert not hasattr(caught.value, "__notes__")
    with pytest.raises(errors.ShapeError, match=r"^model\.0\.0 \(Linear 3→2\) got"):
        nn.Sequential(nn.Sequential(nn.Linear(3, 2)))(gf.zeros((5, 4)))
    with pytest.raises(errors.ShapeError, match=r"^Linear 3→2 got input of shape \(\): its last axis must be 3\."):
        nn.Linear(3, 2)(gf.tensor(1.0))


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("by zero"), KeyError("k"), errors.ShapeError("no label"), OSError(2, "no")]
)
def test_other_errors_get_one_note(error: Exception) -> None:
    args = error.args
    error.add_note("an earlier note")
    with pytest.raises(type(error)) as caught:
        nn.Sequential(nn.Tanh(), nn.Sequential(Broken(error)))(gf.ones(3))
    assert caught.value is error
    assert error.args == args
    assert error.__notes__ == ["an earlier note", "in model.1.0 (Broken)"]


def test_a_wrong_call_is_located_too() -> None:
    with pytest.raises(TypeError) as caught:
        nn.Sequential(MLP())(gf.ones(2), gf.ones(2))
    assert caught.value.__notes__ == ["in Sequential"]


def test_a_module_that_is_not_held_keeps_the_best_known_path() -> None:
    hidden = nn.Sequential(nn.Linear(3, 2))

    class Closure(nn.Module):
        def forward(self, x: Any) -> Any:
            return hidden(x)

    with pytest.raises(errors.ShapeError, match=r"^model\.0 \(Linear 3→2\) got"):
        nn.Sequential(Closure())(gf.zeros((5, 4)))


def test_an_error_can_be_pickled() -> None:
    with pytest.raises(errors.ShapeError) as caught:
        nn.Sequential(nn.Linear(3, 2))(gf.zeros((5, 4)))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# --------------------------------------------------------------------------------------------------------- random trees
trees = st.recursive(
    st.sampled_from(["linear", "parameter", "buffer", "number"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)


def grow(tree: Any) -> Any:
    if isinstance(tree, list):
        return [grow(item) for item in tree] if len(tree) % 2 else tuple(grow(item) for item in tree)
    if isinstance(tree, dict):
        held = {key: grow(item) for key, item in tree.items()}
        return Holder(**held) if len(tree) % 2 else held
    return {
        "linear": lambda: nn.Linear(2, 2),
        "parameter": lambda: gf.Parameter(gf.ones(3)),
        "buffer": lambda: nn.Buffer(gf.ones(2)),
        "number": lambda: 1.5,
    }[tree]()


def count(tree: Any, leaf: str) -> int:
    if isinstance(tree, list | dict):
        return sum(count(item, leaf) for item in (tree.values() if isinstance(tree, dict) else tree))
    return tree == leaf


@given(trees)
def test_nothing_is_lost_in_any_tree(tree: Any) -> None:
    model = Holder(root=grow(tree))
    assert len(list(model.parameters())) == 2 * count(tree, "linear") + count(tree, "parameter")
    assert len(list(model.buffers())) == count(tree, "buffer")
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        nn.init.uniform_(parameter)
    twin.load_state_dict(model.state_dict())
    assert values(twin) == values(model)
    assert repr(twin) == repr(model)


def test_errors_on_their_way_through_modules_leave_no_cycle() -> None:
    import gc

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 2))

    def fail() -> None:
        try:
            model(gf.zeros((2, 4)))
        except errors.ShapeError:
            return
        raise AssertionError

    fail()
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            fail()
        assert gc.collect() == 0
    finally:
        gc.enable()
