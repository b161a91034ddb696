"""Bad input: every mistake is told with its reason and the corrected code, and leaves everything as it was.

`bad_input.txt` is the table, one mistake to a paragraph: the wrong code, what it raises word for word (… stands for
whatever NumPy or the machine says), and under `right:` code that is run and must work: the printed fix itself, or the
wrong code with the fix put in. `given:` is run first and is no mistake. `{Optimizer}` stands for each of `optim`.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradflow as gf
from gradflow import backend, config, errors, nn, optim, testing, training
from gradflow.compiler import trace
from gradflow.data import DataLoader, TensorDataset
from gradflow.errors import GradflowError
from gradflow.mode import get_mode
from gradflow.ops.random import default_generator
from gradflow.optim import lr_scheduler
from gradflow.optim.optimizer import FirstOrder
from gradflow.testing import without_kernels

pytest.importorskip("safetensors")
RULES = without_kernels("numpy")
OPTIMIZERS = [
    name
    for name, kind in inspect.getmembers(optim, inspect.isclass)
    if name in optim.__all__ and issubclass(kind, FirstOrder)
]


# ---------------------------------------------------------------- the world in which mistakes are made
def world(folder: Path) -> dict[str, Any]:
    """What the table's code may name: tensors, a trained model, its optimizer, data, files."""
    x = gf.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    leaf = gf.tensor([1.0, 2.0], requires_grad=True)
    leaf.grad = gf.ones(2)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    path, broken = folder / "state.safetensors", folder / "broken"
    path.write_bytes(saved_file())
    broken.write_bytes(saved_file()[:-5])
    dataset = TensorDataset(x, gf.ones((2, 2)))
    return {
        **{module.__name__.rpartition(".")[2]: module for module in (copy, nn, optim, pickle, training)},
        **{f.__name__: f for f in (DataLoader, TensorDataset, trace)},
        "gf": gf, "np": np, "RULES": RULES, "broken": broken, "path": path, "f": lambda t: (t * t).sum(),
        "x": x, "y": x / 10, "t": x.copy(), "mask": x[0] > 1, "n": np.array([1.0, 2.0]), "data": np.array([1.0, 2.0]),
        "i": gf.tensor([1, 0]), "indices": gf.tensor([1, 0]), "target": gf.tensor([0, 1]), "gradient": gf.ones(1),
        "v": gf.ones((2, 3)), "numpy_array": np.zeros(2), "array": np.zeros(2), "labels": gf.tensor([3, 4]),
        "leaf": leaf, "loss": (leaf**2).sum(), "other": gf.ones((2, 3), backend=RULES), "model": model,
        "optimizer": optimizer, "state": model.state_dict(), "saved": optimizer.state_dict(),
        "generator": gf.Generator(3), "dataset": dataset, "loader": DataLoader(dataset, 2),
    }  # fmt: skip


@cache
def saved_file() -> bytes:
    """A whole file of the model's state; written once, since every write waits for the disk."""
    with tempfile.TemporaryDirectory() as folder:
        gf.save(f"{folder}/state", nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
        return Path(folder, "state").read_bytes()


def process_state() -> dict[str, Any]:
    """What is shared by all: the mode, the choice of backend, the default dtype, the default stream."""
    gf.get_backend()  # chosen at its first use, if not before
    return {
        "mode": get_mode(),
        "backend": (backend._current, backend._current_source, backend._override.get()),
        "dtype": config.get_default_dtype(),
        "generator": default_generator().get_state(),
    }


def snapshot(value: Any) -> Any:
    """Everything about a value that a call could have changed, as something that == compares."""
    match value:
        case gf.Tensor():
            array = np.asarray(value)
            bits = array.tobytes(), array.shape, array.dtype, value.backend
            hooks = dict(getattr(value._node, "hooks", {}))
            return bits, value.version, value.requires_grad, id(value._node), hooks, snapshot(value.grad)
        case np.ndarray():
            return value.tobytes(), value.shape, value.dtype
        case nn.Module():
            held = {key: snapshot(item) for key, item in vars(value).items() if key != "training"}
            return type(value), held, value.training
        case optim.Optimizer():
            groups = [{k: snapshot(v) for k, v in group.items()} for group in value.param_groups]
            return groups, snapshot(value.state_dict())
        case gf.Generator():
            return value.get_state()
        case DataLoader():
            return snapshot(vars(value))
        case TensorDataset():
            return snapshot(value.tensors)
        case Path():
            return value, sorted(file.name for file in value.parent.iterdir()), value.read_bytes()
        case Mapping():
            return {key: snapshot(item) for key, item in value.items()}
        case list() | tuple():
            return [snapshot(item) for item in value]
    return repr(value) if isinstance(value, bool | int | float | str) else type(value)


def test_the_snapshot_sees_every_kind_of_change(tmp_path: Path) -> None:
    """The test of the test: a snapshot that misses a change would let a half-done call pass."""
    changes = """
        x.data[0, 0] = 9.0; x += 0.0; x.requires_grad_(); leaf.grad = None; leaf.grad.data[0] = 9.0
        leaf.register_hook(print); n[0] = 9.0; model.eval(); model[0].training = False; model[0].weight.data[0, 0] = 9.0
        model.append(nn.Tanh()); model[0].bias = None; optimizer.lr = 0.5; optimizer.param_groups.pop()
        optimizer.param_groups[0].buffers[0].slots[0].data[0] = 9.0; generator.manual_seed(4); loader.batch_size = 1
        path.write_bytes(b""); (path.parent / "left over").touch(); state.clear(); dataset.tensors[0].data[0] = 9.0
    """
    for change in re.split(r"[;\n]", changes.strip()):
        there = world(tmp_path)
        before = snapshot(there)
        exec(change.strip(), there)
        assert snapshot({name: there[name] for name in before}) != before, change
        for file in tmp_path.iterdir():
            file.unlink()


# ---------------------------------------------------------------- the table
class Row(NamedTuple):
    """One mistake of the table."""

    given: str
    wrong: str
    error: str
    message: str
    right: str


PARAGRAPH = re.compile(r"(?:given: (.*)\n)?wrong: (.*)\n(\w+): ((?:.*\n)+?)(?:right: (.*)\n)?\Z")


def rows() -> Iterator[Row]:
    """The mistakes of the table, those of `{Optimizer}` for each optimizer there is."""
    text = (Path(__file__).parent / "bad_input.txt").read_text(encoding="utf-8")
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("# ----"):
            continue
        parts = PARAGRAPH.match(paragraph.rstrip("\n") + "\n")
        assert parts, paragraph
        for name in OPTIMIZERS if "{Optimizer}" in paragraph else [""]:
            yield Row(*(part.replace("{Optimizer}", name).strip("\n") for part in parts.groups(default="")))


ROWS = list(rows())


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.given}; {row.wrong}" if row.given else row.wrong for row in ROWS])
def test_a_mistake_is_explained_and_changes_nothing(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    there = world(tmp_path)
    exec(row.given, there)
    names = set(there)
    before, process = snapshot({name: there[name] for name in names}), process_state()
    with pytest.raises(getattr(errors, row.error, AttributeError)) as caught:
        exec(row.wrong, there)
    message = str(caught.value)
    assert re.fullmatch(re.escape(row.message).replace("…", ".*"), message), message
    assert re.fullmatch(r"(?s)[^\n].*\n  why: [^\n]+\n  fix: [^\n]+", message), message
    assert isinstance(caught.value, GradflowError) or row.error == "AttributeError"
    assert snapshot({name: there[name] for name in names}) == before
    assert process_state() == process


@pytest.mark.parametrize("row", [row for row in ROWS if row.right], ids=lambda row: row.wrong)
def test_the_corrected_code_works(row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The printed fix is run as it stands, or put into the wrong code."""
    fix = row.message.rpartition("  fix: ")[2]
    assert row.right in fix or fix in row.right
    monkeypatch.chdir(tmp_path)
    there, dtype = world(tmp_path), config.get_default_dtype()
    exec(row.given, there)
    exec(row.right, there)
    config.set_default_dtype(dtype)


def test_the_table_has_every_class_of_error() -> None:
    """A new exception class needs a mistake that raises it, here or among those that need a machine of their own."""
    raised = {row.error for row in ROWS}
    elsewhere = {
        "BackendUnavailableError": "test_backend_choice",  # needs a plug-in that cannot be used
        "DataError": "test_datasets",  # needs a file of MNIST
        "CompilationError": "test_compile",  # a compiler that is wrong, and no argument
        "AnomalyError": "test_anomaly",  # a number, not an argument, that went wrong
        "GradflowError": "the base",
        **dict.fromkeys(vars(testing)["__all__"], "test_testing"),  # a check that fails is no bad input
        "MissingDependencyError": "test_serialization",  # needs a package to be missing
    }
    classes = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, GradflowError)}
    assert classes - raised == set(elsewhere) & classes


def test_a_write_through_data_is_refused_and_noticed() -> None:
    """`w.data -= step` writes before Python hands over the result; a graph that saved the old values must not go on."""
    w = gf.tensor([1.0, 2.0], requires_grad=True)
    loss = (w * w).sum()
    with pytest.raises(errors.GraphError, match=r"an assignment to \.data"):
        w.data -= 1.0
    with pytest.raises(errors.GraphError, match="changed in place"):
        loss.backward()


def test_requires_grad_is_set_as_by_the_method() -> None:
    w = gf.Parameter([1.0])
    w.requires_grad = False
    assert not w.requires_grad
    w.requires_grad = True
    (w * 2).sum().backward()
    assert w.grad is not None


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_in_half_precision_load_whole(name: str) -> None:
    """gradflow has no float16; a state that a smaller file kept in it is taken over all the same, not half of it."""
    options = {"momentum": 0.9} if name == "SGD" else {}
    w = gf.Parameter([1.0, 2.0])
    optimizer = getattr(optim, name)([w], **options)
    (w * w).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    halves = {key: np.asarray(value).astype(np.float16) for key, value in state["state"][0].items() if key != "step"}
    optimizer.load_state_dict({**state, "state": {0: {**state["state"][0], **halves}}})
    for key, value in halves.items():
        assert np.array_equal(np.asarray(optimizer.state_dict()["state"][0][key]), value.astype(np.float32))


# ---------------------------------------------------------------- garbage for every argument of every public function
Call = tuple[Callable[..., Any], Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]]


def ints() -> gf.Tensor:
    return gf.tensor([[1, 2, 3], [4, 5, 6]])


def floats() -> gf.Tensor:
    return gf.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]])


def square_sum(t: gf.Tensor) -> gf.Tensor:
    return (t * t).sum()


def parameters() -> list[gf.Parameter]:
    parameter = gf.Parameter([1.0, 2.0])
    square_sum(parameter).backward()
    return [parameter]


def linear() -> nn.Module:
    return nn.Linear(3, 2)


def batches() -> DataLoader:
    return DataLoader(TensorDataset(floats(), gf.ones((2, 2))), batch_size=2)


def arguments(*args: Callable[[], Any], **kwargs: Any) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    """A right call: how its positional arguments are made anew, and its settings."""
    return lambda: (tuple(make() for make in args), dict(kwargs))


def like(value: Any) -> Callable[[], Any]:
    return lambda: value


def sgd() -> optim.Optimizer:
    return optim.SGD(parameters(), lr=0.5, momentum=0.9)


SEQUENCED = sgd()
WEIGHT = lambda: gf.Parameter(gf.zeros((2, 3)))  # noqa: E731
SIZE, NUMBER, FUNCTION = like(2), like(1.0), like(square_sum)
OPERAND = arguments(floats)
RIGHT: dict[str, Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]] = {  # where operands alone would not do
    "Generator": arguments(like(0)),
    "Parameter": arguments(floats, requires_grad=True),
    "arange": arguments(like(0), like(10), like(2), dtype=None, backend=None),
    "asarray": arguments(floats, dtype=None, device=None, backend=None, copy=None),
    "astype": arguments(floats, like(gf.float64), copy=True),
    "binary_cross_entropy": arguments(floats, floats, weight=None, reduction="mean"),
    "binary_cross_entropy_with_logits": arguments(floats, floats, weight=None, pos_weight=None, reduction="mean"),
    "broadcast_to": arguments(floats, like((2, 2, 3))),
    "clip": arguments(floats, NUMBER, NUMBER),
    "concat": arguments(lambda: [floats(), floats()], axis=0),
    "concatenate": arguments(lambda: [floats(), floats()], axis=0),
    "cross_entropy": arguments(
        floats, like(np.array([0, 1])), weight=None, ignore_index=-100, label_smoothing=0.1, reduction="mean"
    ),
    "custom_vjp": arguments(FUNCTION),
    "defimpl": arguments(like(gf.tanh), FUNCTION),
    "defvjp": arguments(like(gf.tanh)),
    "eye": arguments(SIZE, SIZE, k=0, dtype=None, backend=None),
    "flatten": arguments(floats, start_axis=0),
    "from_dlpack": arguments(like(np.ones(2)), device=None, copy=None),
    "dropout": arguments(floats, like(0.5), training=True, generator=None),
    "embedding": arguments(lambda: gf.tensor([1, 0]), WEIGHT, padding_idx=None),
    "empty": arguments(SIZE, dtype=None, backend=None, requires_grad=True),
    "full": arguments(SIZE, NUMBER, dtype=None, backend=None, requires_grad=True),
    "full_like": arguments(floats, NUMBER, dtype=None),
    "functional_call": arguments(linear, lambda: {"bias": gf.zeros(2)}, floats),
    "gelu": arguments(floats, approximate="tanh"),
    "grad": arguments(FUNCTION, SIZE, has_aux=False),
    "hessian": arguments(FUNCTION, like(0)),
    "hvp": arguments(FUNCTION, floats, floats),
    "jacobian": arguments(FUNCTION, like(0)),
    "jvp": arguments(FUNCTION, lambda: (floats(),), lambda: (floats(),)),
    "layer_norm": arguments(floats, lambda: gf.ones(3), lambda: gf.zeros(3), axis=-1, eps=1e-5),
    "linear": arguments(floats, WEIGHT, lambda: gf.zeros(2)),
    "linspace": arguments(NUMBER, NUMBER, SIZE, dtype=None, endpoint=True, backend=None),
    "manual_seed": arguments(like(0)),
    "matmul": arguments(floats, lambda: gf.ones((3, 2))),
    "moveaxis": arguments(floats, like(0), like(1)),
    "ones": arguments(SIZE, dtype=None, backend=None, requires_grad=True),
    "permute_dims": arguments(floats, like((1, 0))),
    "primitive": arguments(like("float")),
    "reshape": arguments(floats, like((3, 2)), copy=None),
    "set_backend": arguments(like("numpy")),
    "set_default_dtype": arguments(like(gf.float32)),
    "set_grad_enabled": arguments(like(True)),
    "set_num_threads": arguments(like(1)),
    "squeeze": arguments(lambda: gf.ones((1, 2)), like(0)),
    "stack": arguments(lambda: [floats(), floats()], axis=0),
    "take": arguments(floats, lambda: gf.tensor([0]), axis=0),
    "take_along_axis": arguments(floats, lambda: gf.tensor([[0], [1]]), axis=1),
    "tensor": arguments(floats, dtype=None, backend=None, requires_grad=True),
    "use_backend": arguments(like("numpy")),
    "value_and_grad": arguments(FUNCTION, SIZE, has_aux=False),
    "vjp": arguments(FUNCTION, floats),
    "where": arguments(lambda: floats() > 0, floats, floats),
    "zeros": arguments(SIZE, dtype=None, backend=None, requires_grad=True),
    **dict.fromkeys(["bitwise_and", "bitwise_or", "bitwise_xor"], arguments(ints, ints)),
    # dtypes
    "iinfo": arguments(like(gf.int8)),
    "finfo": arguments(like(gf.float32)),
    "isdtype": arguments(like(gf.int8), like("integral")),
    "can_cast": arguments(like(gf.int8), like(gf.int16)),
    "result_type": arguments(like(gf.int8), like(gf.int16)),
    "bitwise_invert": arguments(ints),
    # layers, losses, optimizers
    "nn.BCELoss": arguments(like(None), like("mean")),
    "nn.BCEWithLogitsLoss": arguments(like(None), like(None), like("mean")),
    "nn.Buffer": arguments(floats, persistent=True),
    "nn.CrossEntropyLoss": arguments(like(None), like(-100), NUMBER, like("mean")),
    "nn.Dropout": arguments(NUMBER),
    "nn.Embedding": arguments(like(7), SIZE, like(0), dtype=None, backend=None),
    "nn.Flatten": arguments(like(1), like(-1)),
    "nn.GELU": arguments(like("tanh")),
    "nn.LayerNorm": arguments(like(3), NUMBER, like(True), like(False), dtype=None, backend=None),
    "nn.Linear": arguments(like(3), SIZE, bias=True, dtype=None, backend=None),
    "nn.LogSoftmax": arguments(like(-1)),
    "nn.Loss": arguments(like("mean")),
    "nn.MLP": arguments(like([3, 2]), like(nn.Tanh)),
    "nn.MSELoss": arguments(like("mean")),
    "nn.Residual": arguments(nn.Tanh, shortcut=None),
    "nn.Sequential": arguments(nn.Tanh, nn.Tanh),
    "nn.Softmax": arguments(like(-1)),
    "nn.functional_call": arguments(linear, lambda: {"bias": gf.zeros(2)}, floats),
    "optim.SGD": arguments(parameters, NUMBER, NUMBER, NUMBER, NUMBER, like(False), maximize=False),
    **dict.fromkeys(
        ["optim.Adam", "optim.AdamW"],
        arguments(parameters, NUMBER, like((0.9, 0.9)), NUMBER, NUMBER, eps_inside_root=False, maximize=False),
    ),
    "optim.LBFGS": arguments(
        parameters, NUMBER, SIZE, SIZE, NUMBER, NUMBER, SIZE, like("strong_wolfe")
    ),
    "lr_scheduler.LambdaLR": arguments(sgd, like(float)),
    "lr_scheduler.StepLR": arguments(sgd, SIZE, NUMBER),
    "lr_scheduler.MultiStepLR": arguments(sgd, like([1, 2]), NUMBER),
    "lr_scheduler.ExponentialLR": arguments(sgd, NUMBER),
    "lr_scheduler.LinearLR": arguments(sgd, NUMBER, NUMBER, SIZE),
    "lr_scheduler.CosineAnnealingLR": arguments(sgd, SIZE, NUMBER),
    "lr_scheduler.OneCycleLR": arguments(
        sgd, NUMBER, like(None), SIZE, SIZE, NUMBER, like("cos"), like(True), NUMBER, NUMBER, NUMBER, NUMBER, like(True)
    ),
    "lr_scheduler.ReduceLROnPlateau": arguments(
        sgd, like("min"), like(0.5), SIZE, NUMBER, like("rel"), SIZE, NUMBER, NUMBER
    ),
    "lr_scheduler.SequentialLR": arguments(like(SEQUENCED), like([lr_scheduler.StepLR(SEQUENCED, 2)]), like([])),
    # what comes with them
    "init.calculate_gain": arguments(like("leaky_relu"), NUMBER),
    "init.constant_": arguments(WEIGHT, NUMBER),
    "init.normal_": arguments(WEIGHT, NUMBER, NUMBER, generator=None),
    "init.uniform_": arguments(WEIGHT, like(0.0), NUMBER, generator=None),
    **dict.fromkeys(["init.ones_", "init.zeros_"], arguments(WEIGHT)),
    **dict.fromkeys(["init.xavier_uniform_", "init.xavier_normal_"], arguments(WEIGHT, NUMBER, generator=None)),
    **dict.fromkeys(
        ["init.kaiming_uniform_", "init.kaiming_normal_"],
        arguments(WEIGHT, NUMBER, like("fan_in"), like("leaky_relu"), generator=None),
    ),
    "utils.clip_grad_norm_": arguments(parameters, NUMBER, NUMBER, like(True)),
    "utils.clip_grad_value_": arguments(parameters, NUMBER),
    "utils.functional_call": arguments(linear, lambda: {"bias": gf.zeros(2)}, floats),
    "utils.parameters_to_vector": arguments(parameters),
    "utils.vector_to_parameters": arguments(lambda: gf.ones(2), parameters),
    "random.Generator": arguments(like(0)),
    "random.manual_seed": arguments(like(0)),
    "random.normal": arguments(SIZE, mean=0.0, std=1.0, dtype=None, generator=None, backend=None),
    "random.permutation": arguments(SIZE, generator=None),
    "random.uniform": arguments(SIZE, low=0.0, high=1.0, dtype=None, generator=None, backend=None),
    "data.DataLoader": arguments(
        lambda: TensorDataset(floats()), SIZE, like(False), like(False), seed=None, generator=None
    ),
    "data.TensorDataset": arguments(floats, floats),
    "training.accuracy": arguments(floats, like(np.array([0, 1]))),
    "training.evaluate": arguments(linear, like(gf.mse_loss), batches, like(None)),
    "training.fit": arguments(
        linear, like(gf.mse_loss), lambda: optim.SGD(parameters()), batches, epochs=1, validation=None, metrics=None,
        monitor="loss", patience=None, restore_best=True, checkpoint=None, callback=None, progress=False,
    ),
    "save": arguments(lambda: "file", dict),
    "load": arguments(lambda: saved_file() and "whole", backend=None),
}  # fmt: skip
NO_ARGUMENTS = {
    "Tensor", "enable_grad", "no_grad", "backends", "get_backend", "get_default_dtype", "get_num_threads",
    "is_grad_enabled", "random.default_generator", "nn.Identity", "nn.ReLU", "nn.SiLU", "nn.Sigmoid", "nn.Tanh",
    "nn.Module",
}  # fmt: skip
PROTOCOLS = {
    "data.Dataset",
    "lr_scheduler.LRScheduler",
    "lr_scheduler.Schedule",
    "optim.Optimizer",
    "optim.ParamGroup",
}  # not called by users


def public_functions() -> dict[str, Callable[..., Any]]:
    """Everything that can be called, found in the `__all__` of each public module."""
    found: dict[str, Callable[..., Any]] = {}
    for module in (gf, nn, optim, lr_scheduler, nn.init, nn.utils, gf.random, gf.data, training):
        prefix = "" if module is gf else f"{module.__name__.rpartition('.')[2]}."
        names = getattr(module, "__all__", None) or [
            name for name, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__
        ]
        for name in names:
            function = getattr(module, name)
            if not name.startswith("_") and callable(function) and not isinstance(function, np.dtype):
                found[prefix + name] = function
    return found


def forwards() -> dict[str, Call]:
    """Every layer and loss, called."""
    calls: dict[str, Call] = {}
    for name, kind in public_functions().items():
        if name.startswith("nn.") and inspect.isclass(kind) and issubclass(kind, nn.Module):
            if name in ("nn.Module", "nn.Loss", "nn.Identity"):
                continue
            args, settings = RIGHT.get(name, arguments())()
            right = arguments(ints) if name == "nn.Embedding" else OPERAND
            if issubclass(kind, nn.Loss):
                right = arguments(floats, like(np.array([0, 1])) if name == "nn.CrossEntropyLoss" else floats)
            calls[f"{name}()"] = kind(*args, **settings), right
    return calls


def calls() -> dict[str, Call]:
    found: dict[str, Call] = {}
    for name, function in public_functions().items():
        if name in NO_ARGUMENTS | PROTOCOLS or name == "nn.Parameter":
            continue
        own = function
        if name == "use_backend":
            own = lambda choice: gf.use_backend(choice).__enter__()  # noqa: E731
        if name not in RIGHT:  # a function of operands alone, and of settings that may be left out
            wanted = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
            operands = [floats for p in wanted if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
            settings = {
                p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
            }
            found[name] = own, arguments(*operands, **settings)
        else:
            found[name] = own, RIGHT[name]
    return found | forwards()


CALLS = calls()


class Thing:
    """An object that is nothing gradflow could use."""


GARBAGE: dict[str, Callable[[], Any]] = {
    "an object": Thing,
    "a complex number": lambda: 1j,
    "a complex array": lambda: np.ones((2, 3), complex),
    "an object array": lambda: np.full((2, 3), None),
    "an array of dates": lambda: np.zeros((2, 3), "M8[s]"),
    "an array of texts": lambda: np.full((2, 3), "a"),
    "an ellipsis": lambda: ...,
    "a set": lambda: {1.0},
    "bytes": lambda: b"xx",
    "a module": lambda: np,
}
SOMETIMES: dict[str, Callable[[], Any]] = {  # right in some places
    "None": lambda: None,
    "a text": lambda: "text",
    "a list": lambda: [1.0, 2.0],
    "a dict": lambda: {"a": 1},
}
ACCEPTED = {  # beside None where it is the default
    "a list": {
        "Parameter 0", "asarray 0", "tensor 0", "stack 0", "nn.Buffer 0", "nn.CrossEntropyLoss 0",
        "nn.BCEWithLogitsLoss 0", "nn.BCEWithLogitsLoss 1", "nn.BCELoss 0", "data.DataLoader 0", "save 1",
        "hvp 1", "vjp 1",  # containers of numbers, which the function does not take
    },
    "a text": {"save 0", "save 1", "load 0", "training.fit checkpoint", "primitive 0"},
    "a dict": {"save 1"},
    "None": {
        "Generator 0", "random.Generator 0", "set_backend 0", "use_backend 0", "concat axis", "concatenate axis",
        "save 1", "arange 1", "clip 1", "clip 2", "eye 1", "linear 2", "training.evaluate 3", "init.calculate_gain 1",
        "init.kaiming_uniform_ 1", "init.kaiming_normal_ 1", "nn.CrossEntropyLoss 0", "nn.BCEWithLogitsLoss 0",
        "nn.BCEWithLogitsLoss 1", "nn.BCELoss 0", "nn.Embedding 2", "layer_norm 1", "layer_norm 2",
        "set_num_threads 0", "optim.LBFGS 3", "optim.LBFGS 7", "lr_scheduler.OneCycleLR 2",
    },
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visitors: None) -> Iterator[Path]:
    """A folder with a whole file in it, and the process as it was, afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "whole").write_bytes(saved_file())
    yield tmp_path
    config.set_default_dtype(gf.float32)
    gf.set_backend(None)
    gf.set_num_threads(None)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_garbage_in_any_place_is_explained(name: str, files: Path) -> None:
    function, right = CALLS[name]
    args, settings = right()
    function(*args, **settings)  # the call is right; what follows is wrong in one place
    for place in [*range(len(args)), *settings]:
        for kind, make in {**GARBAGE, **SOMETIMES}.items():
            positional, given = right()
            wrong, process = [*positional], process_state()
            if isinstance(place, int):
                wrong[place] = make()
            else:
                if kind == "None" and given[place] is None:
                    continue
                given[place] = make()
            where = f"{name} {place}"
            if kind in SOMETIMES and (
                where in ACCEPTED[kind] or kind == "None" and _default_is_none(public_functions().get(name), place)
            ):
                continue
            error = raised_by(lambda f=function, a=wrong, k=given: f(*a, **k))
            assert isinstance(error, GradflowError), f"{where} got {kind}: {error!r}"
            assert re.search(r"\n  why: .+\n  fix: .+", str(error)), f"{where} got {kind}: {error}"
            assert process_state() == process, f"{where} got {kind}"


def raised_by(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def _default_is_none(function: Any, place: int | str) -> bool:
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
    return isinstance(place, str) and place in known and known[place].default is None


def test_every_public_function_is_called() -> None:
    names = set(public_functions())
    assert set(RIGHT) <= names
    assert names - set(CALLS) == NO_ARGUMENTS | PROTOCOLS | {"nn.Parameter"}


SEVERAL = [
    name
    for name, (_, right) in CALLS.items()
    if name != "data.TensorDataset"  # it computes nothing, so its arrays may lie where they like
    if sum(isinstance(value, gf.Tensor) for value in right()[0]) > 1
]


@pytest.mark.parametrize("name", SEVERAL)
def test_tensors_of_two_backends_are_an_error_that_names_both(name: str, files: Path) -> None:
    function, right = CALLS[name]
    for place, value in enumerate(right()[0]):
        if isinstance(value, gf.Tensor):
            mixed, settings = list(right()[0]), right()[1]
            mixed[place] = gf.asarray(np.asarray(value), backend=RULES)
            error = raised_by(lambda f=function, a=mixed, k=settings: f(*a, **k))
            assert isinstance(error, errors.BackendMismatchError), f"{name} {place}: {error!r}"
            assert "numpy:cpu" in str(error)
            assert "rules-only:cpu" in str(error)
