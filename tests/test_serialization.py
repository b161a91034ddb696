"""gf.save and gf.load: what goes in comes out, the old file survives every accident, and no file is trusted."""

from __future__ import annotations

import json
import math
import os
import pickle
import stat
import struct
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import gradflow as gf
from gradflow import errors
from gradflow.files import replacing

pytest.importorskip("safetensors")
import safetensors.numpy

DTYPES = ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)), "float32", "float64"]


def equal(a: Any, b: Any) -> bool:
    """Whether two states have the same structure, types and values, bit for bit."""
    if isinstance(a, gf.Tensor | np.ndarray):
        assert isinstance(b, gf.Tensor)
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and list(map(type, a)) == list(map(type, b)) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b) or (isinstance(a, float) and math.isnan(a) and math.isnan(b))


def round_trip(path: Path, state: Any) -> Any:
    gf.save(path, state)
    return gf.load(path)


def raw(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


# ------------------------------------------------------------------------------------------------------------ structure
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (2, 3, 4)])
def test_every_dtype_and_shape(file: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    loaded = round_trip(file, {"a": array, "t": gf.asarray(array)})
    assert equal({"a": array, "t": array}, loaded)


def test_special_floats_bit_for_bit(file: Path) -> None:
    array = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324, 1e308])
    assert equal({"x": array}, round_trip(file, {"x": array}))


@pytest.mark.parametrize(
    "array",
    [
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        np.arange(10)[::-2],
        np.broadcast_to(np.float32(3), (2, 2)),
        np.arange(4, dtype=">i4"),
        np.arange(6, dtype=">f8").reshape(2, 3).T,
    ],
    ids=["fortran", "transposed", "reversed", "broadcast", "big-endian", "big-endian-transposed"],
)
def test_any_memory_layout(file: Path, array: np.ndarray[Any, Any]) -> None:
    loaded = round_trip(file, {"x": array})["x"]
    assert loaded.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(np.asarray(loaded), array)


def test_transposed_tensor(file: Path) -> None:
    x = gf.permute_dims(gf.asarray(np.arange(6.0).reshape(2, 3)), (1, 0))
    assert equal(x, round_trip(file, {"x": x})["x"])


def test_nested_state_comes_back_as_it_was(file: Path) -> None:
    state = {
        "state": {0: {"step": 3, "exp_avg": np.ones((2, 3), np.float32)}, 1: {"exp_avg": np.zeros(3, np.float32)}},
        "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "amsgrad": False, "decay": None}],
        "best": math.inf,
        "worst": -math.inf,
        "last": math.nan,
        "tenth": 0.1,
        "huge": 2**200,
        "name": 'Jürgen "J" \0\n日本',
        "empty": {},
        "nothing": [],
        "none": (),
        "nested": (1, [2, (3, {"x": np.arange(2)})]),
        "": np.arange(3),
    }
    assert equal(state, round_trip(file, state))


ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
STATES = st.recursive(
    SCALARS | ARRAYS | ARRAYS.map(np.transpose),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(TEXT | st.integers() | st.sampled_from(["a", "a.b", "b", "a'"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(state=STATES)
def test_any_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, state: Any) -> None:
    assert equal(state, round_trip(tmp_path_factory.getbasetemp() / "any.safetensors", state))


def test_int_and_str_keys_and_order_survive(file: Path) -> None:
    state = {"b": np.array(1), 1: np.array(2), "1": np.array(3), "a": 4, -5: 5}
    loaded = round_trip(file, state)
    assert equal(state, loaded)
    assert list(loaded) == ["b", 1, "1", "a", -5]


@pytest.mark.parametrize(
    "state",
    [
        {"a.b": np.array(1), "a": {"b": np.array(2)}},
        {"a": {"b": np.array(2)}, "a.b": np.array(1), "a.b'": np.array(3)},
        {"__metadata__": np.array(1)},
        {"": np.array(1), "'": {"": np.array(2)}},
        {"tensor": "weight", "dict": [], "tuple": (1,), "weight": {"tensor": np.array(1)}},
    ],
)
def test_names_that_clash(file: Path, state: Any) -> None:
    assert equal(state, round_trip(file, state))


@pytest.mark.parametrize("state", [[1, np.arange(2)], (np.arange(2),), np.arange(3), 7, None, {}])
def test_any_outermost_kind(file: Path, state: Any) -> None:
    assert equal(state, round_trip(file, state))


def test_subclasses_and_scalars_come_back_plain(file: Path) -> None:
    state = {"o": OrderedDict(x=1), "f": np.float32(0.1), "i": np.int8(3), "b": np.bool(True), "s": np.str_("t")}
    loaded = round_trip(file, state)
    assert equal(loaded, {"o": {"x": 1}, "f": float(np.float32(0.1)), "i": 3, "b": True, "s": "t"})


def test_tied_tensors_are_saved_under_each_name(file: Path) -> None:
    x = gf.ones((2,))
    loaded = round_trip(file, {"a": x, "b": x})
    assert equal(loaded, {"a": x, "b": x})
    assert set(safetensors.numpy.load_file(file)) == {"a", "b"}


def test_parameters_come_back_without_grad(file: Path) -> None:
    loaded = round_trip(file, {"w": gf.Parameter(gf.ones((2,)))})["w"]
    assert type(loaded) is gf.Tensor
    assert not loaded.requires_grad
    loaded += 1  # its own, writable memory
    assert loaded.tolist() == [2.0, 2.0]


def test_loaded_tensors_outlive_their_file(file: Path) -> None:
    loaded = round_trip(file, {"w": np.arange(100.0)})["w"]
    with open(file, "r+b") as opened:
        opened.truncate(0)
    assert loaded.tolist() == list(range(100))


def test_objects_with_a_state_dict(file: Path) -> None:
    class Counter:
        def state_dict(self) -> dict[str, Any]:
            return {"count": np.array(3), "name": "c"}

    assert equal(Counter().state_dict(), round_trip(file, Counter()))


def test_backend_argument(file: Path) -> None:
    gf.save(file, {"w": np.ones(2)})
    assert gf.load(file, backend="numpy")["w"].backend.name == "numpy"
    with pytest.raises(errors.UnknownBackendError):
        gf.load(file, backend="nunpy")


# -------------------------------------------------------------------------------------------------------- other readers
def test_flat_states_are_plain_safetensors_files(file: Path) -> None:
    state = {"layers.0.weight": np.ones((2, 3), np.float32), "layers.0.bias": np.zeros(2, np.float32)}
    gf.save(file, state)
    other = safetensors.numpy.load_file(file)
    assert set(other) == set(state)
    np.testing.assert_array_equal(other["layers.0.weight"], state["layers.0.weight"])


def test_nested_tensors_have_dotted_names(file: Path) -> None:
    gf.save(file, {"model": {"w": np.ones(2)}, "moments": [np.ones(2), (np.ones(3),)]})
    assert set(safetensors.numpy.load_file(file)) == {"model.w", "moments.0", "moments.1.0"}


def test_pytorch_state_dicts_both_ways(file: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    state = model.state_dict()
    save_file(state, file)
    loaded = gf.load(file)
    assert set(loaded) == set(state)
    assert all(equal(state[name].numpy(), loaded[name]) for name in state)
    gf.save(file, loaded)
    model.load_state_dict(load_file(file))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_foreign_dtypes_are_named(file: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    save_file({"good": torch.ones(2), "odd.one": torch.ones(2).to(getattr(torch, dtype))}, file)
    with pytest.raises(errors.DTypeError, match=r"1 of 2 tensors in dtypes gradflow has not: odd\.one \((BF16|F16)\)"):
        gf.load(file)


# ---------------------------------------------------------------------------------------------------- what save refuses
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [object()]}}, r"the state\['a'\]\['b'\]\['0'\], a object"),
        ({"f": lambda: 1}, r"the state\['f'\], a function"),
        ({"s": {1, 2}}, r"the state\['s'\], a set"),
        ({"z": 1j}, "a complex"),
        ({"b": b"bytes"}, "a bytes"),
        ({1.5: 1}, r"the key 1\.5 of the state"),
        ({True: 1}, r"the key True of the state"),
        ({"a": {None: 1}}, r"the key None of the state\['a'\]"),
        ({"h": np.ones(2, np.float16)}, r"the state\['h'\], an array of dtype float16"),
        ({"z": np.ones(2, np.complex128)}, "dtype complex128"),
        ({"o": np.array([object()])}, "dtype object"),
        ({"u": np.array(["text"])}, "dtype <U4"),
        ({"d": np.datetime64("2020-01-01")}, "a date"),
    ],
)
def test_what_cannot_be_stored_is_refused_and_located(file: Path, state: Any, message: str) -> None:
    with pytest.raises(errors.DTypeError, match=message):
        gf.save(file, state)
    assert not any(file.parent.iterdir())


def test_a_state_that_contains_itself(file: Path) -> None:
    state: dict[str, Any] = {}
    state["me"] = state
    with pytest.raises(errors.ArgumentError, match="contains itself"):
        gf.save(file, state)


# ---------------------------------------------------------------------------------------------------- what load refuses
def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": [1.0] * 100}))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", "x" * 100)


WRONG_FILES = {
    "a Python pickle": pickled,
    "a zip archive, such as torch.save": zipped,
    "a NumPy .npy file": lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00" + b" " * 200),
    "an HDF5 file": lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b" " * 200),
    "a gzip file": lambda path: path.write_bytes(b"\x1f\x8b\x08\x00" + b" " * 200),
    "a GGUF file": lambda path: path.write_bytes(b"GGUF\x03" + b" " * 200),
    "a Git LFS pointer": lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
    "JSON text": lambda path: path.write_bytes(b'{"a": 1, "b": 2, "c": 3}'),
    "an HTML or XML page": lambda path: path.write_bytes(b"<!DOCTYPE html><html></html>"),
    "is empty": lambda path: path.write_bytes(b""),
    "or a truncated or corrupt one": lambda path: path.write_bytes(b"abc"),
}


@pytest.mark.parametrize("kind", WRONG_FILES)
def test_other_files_are_recognised(file: Path, kind: str) -> None:
    WRONG_FILES[kind](file)
    with pytest.raises(errors.StateDictError, match=kind):
        gf.load(file)


def test_a_pickle_is_never_run(file: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(file.parent / "exploded"),)

    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(errors.StateDictError, match="pickle"):
        gf.load(file)
    assert not (file.parent / "exploded").exists()


def test_a_header_that_begins_like_a_pickle(file: Path) -> None:
    text = json.dumps({"x": entry([2], 0, 8)}).encode().ljust(0x280)  # its length is 80 02 00 ... in bytes
    assert raw(file, text, b"\0" * 8).read_bytes()[:2] == b"\x80\x02"
    assert gf.load(file)["x"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({"a": entry([2], 0, 8)}, 4, None),
        ({"a": entry([2], 0, 8)}, 12, None),
        ({"a": entry([2], 0, 8), "b": entry([2], 0, 8)}, 8, None),
        ({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, 12, None),
        ({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, 20, None),
        ({"a": entry([2], 0, 8, "F64")}, 8, None),
        ({"a": entry([2], 0, 8, "F33")}, 8, None),
        ({"a": entry([-2], 0, 8)}, 8, None),
        ({"a": entry([2**62, 4], 0, 8)}, 8, None),
        ({"a": entry([2], 8, 0)}, 8, None),
        ({"a": entry([2], 0, 8)}, 8, 2**40),
        ({"a": entry([2], 0, 8)}, 8, 2**64 - 1),
        ({"a": entry([2], 0, 8)}, 8, 10),
        ([], 8, None),
        (b"\xff\xfe not JSON", 8, None),
        ({"a": "text"}, 8, None),
    ],
    ids=(
        "truncated long overlap-whole overlap-part hole wrong-dtype unknown-dtype negative overflow backwards "
        "oversized-header largest-header short-header list not-json no-entry"
    ).split(),
)
def test_corrupt_files(file: Path, header: Any, data: int, length: int | None) -> None:
    raw(file, header, b"\0" * data, length)
    with pytest.raises(errors.StateDictError, match="Nothing was loaded"):
        gf.load(file)


def test_every_truncation_is_noticed(file: Path) -> None:
    gf.save(file, {"a": np.arange(4.0), "b": {"c": np.arange(3)}, "n": 1})
    whole = file.read_bytes()
    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])
        with pytest.raises(errors.StateDictError):
            gf.load(file)


@pytest.mark.parametrize(
    "metadata",
    [
        "not json",
        "[]",
        "{}",
        '{"version": 1}',
        '{"version": 1, "state": {"tensor": "absent"}}',
        '{"version": 1, "state": {"tensor": ["a"]}}',
        '{"version": 1, "state": [{"tensor": "a"}, {"tensor": "a"}]}',
        '{"version": 1, "state": {"dict": [[1, 2, 3]]}}',
        '{"version": 1, "state": {"dict": [[[], {"tensor": "a"}]]}}',
        '{"version": 1, "state": {"set": []}}',
        '{"version": 1, "state": 3}',
        '{"version": 1, "state": ' + "[" * 5000 + "]" * 5000 + "}",
    ],
)
def test_structure_that_does_not_fit_the_tensors(file: Path, metadata: str) -> None:
    safetensors.numpy.save_file({"a": np.ones(2)}, file, metadata={"gradflow": metadata})
    with pytest.raises(errors.StateDictError, match="does not describe its tensors"):
        gf.load(file)


def test_files_of_a_later_version(file: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(2)}, file, metadata={"gradflow": '{"version": 2, "state": null}'})
    with pytest.raises(errors.StateDictError, match=r"version 2, and this gradflow reads version 1"):
        gf.load(file)


def test_foreign_metadata_is_no_matter(file: Path) -> None:
    safetensors.numpy.save_file({"a": np.ones(2)}, file, metadata={"format": "pt"})
    assert equal({"a": np.ones(2)}, gf.load(file))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        gf.load(tmp_path / "absent")
    with pytest.raises(IsADirectoryError):
        gf.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No such folder: .*nowhere"):
        gf.save(tmp_path / "nowhere" / "x", {})


def test_without_the_package(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: gf.save(file, {}), lambda: gf.load(file)):
        with pytest.raises(errors.MissingDependencyError, match="pip install safetensors"):
            call()


# -------------------------------------------------------------------------------------------------- whole or not at all
def test_a_failure_half_way_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gf.save(file, {"a": 1})

    def full_disk(arrays: Any, path: str, metadata: Any) -> None:
        Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        gf.save(file, {"a": 2})
    assert gf.load(file) == {"a": 1}
    assert list(file.parent.iterdir()) == [file]


def test_a_name_that_is_no_text_leaves_the_old_file(file: Path) -> None:
    gf.save(file, {"a": 1})
    with pytest.raises(UnicodeError):
        gf.save(file, {"\ud800": np.ones(2)})
    assert gf.load(file) == {"a": 1}
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("failing", ["fsync", "replace", "chmod"])
def test_replacing_fails_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"), replacing(target) as temporary:
        Path(temporary).write_text("new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_syncs_the_file_then_renames_then_syncs_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fsync, rename = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source: str, target: str) -> None:
        assert os.path.dirname(source) == os.path.dirname(target)
        calls.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    with replacing(tmp_path / "file") as temporary:
        Path(temporary).write_text("new")
    assert calls == ["file", "rename", "folder"][: 3 if os.name == "posix" else 2]


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_permissions(file: Path) -> None:
    before = os.umask(0o027)
    try:
        gf.save(file, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(file.stat().st_mode) == 0o640  # as open() would; the safetensors package makes it 0o600
    file.chmod(0o604)
    gf.save(file, {"a": 1})
    assert stat.S_IMODE(file.stat().st_mode) == 0o604


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_write_protected_files_and_devices_stay(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gf.save(file, {"a": 1})
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    with pytest.raises(PermissionError, match="may be overwritten"):
        gf.save(file, {"a": 2})
    monkeypatch.undo()
    assert gf.load(file) == {"a": 1}
    pipe = file.parent / "pipe"
    os.mkfifo(pipe)
    for target in (pipe, file.parent):
        with pytest.raises(PermissionError, match="may be overwritten"):
            gf.save(target, {})
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="symbolic links")
def test_symbolic_links_stay(file: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    real = tmp_path / "other" / "real"
    file.symlink_to(real)
    assert equal(round_trip(file, {"a": 1}), {"a": 1})
    assert file.is_symlink()
    assert gf.load(real) == {"a": 1}


def test_paths_of_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("plain", tmp_path / "Ünï cødé", "x" * 255):
        assert equal({"a": np.ones(1)}, round_trip(Path(path), {"a": np.ones(1)}))
