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
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import gradflow as gf
from gradflow import backend, config, errors, nn, optim, training
from gradflow.compiler import trace
from gradflow.data import DataLoader, TensorDataset
from gradflow.errors import GradflowError
from gradflow.mode import get_mode
from gradflow.ops.random import default_generator
from tests.strategies import RULES

pytest.importorskip("safetensors")
OPTIMIZERS = [
    name
    for name, kind in inspect.getmembers(optim, inspect.isclass)
    if name in optim.__all__ and issubclass(kind, optim.Optimizer) and not inspect.isabstract(kind)
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
        "GradflowError": "the base",
        "MissingDependencyError": "test_serialization",  # needs a package to be missing
    }
    classes = {name for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, GradflowError)}
    assert classes - raised == set(elsewhere)
