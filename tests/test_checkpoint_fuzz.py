"""The checkpoint reader under attack, and the writer killed: a file loads whole or is refused with a reason.

What a mutated file should give is decided by a second reader, written here from the format's description alone.
Source: the safetensors format, https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import re
import resource
import signal
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gradflow as gf
from gradflow import nn, optim, training
from gradflow.errors import DTypeError, GradflowError, StateDictError
from tests.test_serialization import STATES, entry, equal

pytest.importorskip("safetensors")

REFUSED = object()
LARGEST_HEADER = 100_000_000
DTYPES = {
    "BOOL": "?", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "u1", "U16": "<u2", "U32": "<u4",
    "U64": "<u8", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
OTHERS = {"F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}  # dtypes of the format that gradflow has not


# ---------------------------------------------------------------- the second reader
def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def reference(data: bytes) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of a safetensors file; an exception of any kind says that it is none (or not for gradflow)."""
    (length,) = struct.unpack("<Q", data[:8])
    assert 2 <= length <= min(LARGEST_HEADER, len(data) - 8)
    text, body = data[8 : 8 + length].decode(), data[8 + length :]
    header = json.loads(text, object_pairs_hook=no_name_twice)
    metadata = header.pop("__metadata__", None) or {}
    assert all(isinstance(value, str) for value in metadata.values())
    arrays, covered = {}, 0
    for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = about["data_offsets"]
        dtype = np.dtype(DTYPES[about["dtype"]])
        shape = about["shape"]
        assert all(type(n) is int and n >= 0 for n in [*shape, start, end])
        assert start == covered
        assert end - start == math.prod(shape) * dtype.itemsize
        arrays[name] = np.frombuffer(body[start:end], dtype).reshape(shape)
        assert about["dtype"] != "BOOL" or set(body[start:end]) <= {0, 1}
        covered = end
    assert covered == len(body)
    return arrays


def read(path: Path) -> Any:
    """What `gf.load` gives, or REFUSED if it refuses as it should."""
    try:
        return gf.load(path)
    except (StateDictError, DTypeError) as error:
        message = str(error)
        assert "\n  why: " in message and "\n  fix: " in message, message
        assert str(path) in message
        return REFUSED


def leaves(state: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(state, dict | list | tuple):
        return [leaf for item in (state.values() if isinstance(state, dict) else state) for leaf in leaves(item)]
    return [np.asarray(state)] if isinstance(state, gf.Tensor) else []


def fingerprints(arrays: Any) -> list[tuple[str, tuple[int, ...], bytes]]:
    return sorted((a.dtype.name, a.shape, a.tobytes()) for a in arrays)


def check(path: Path, data: bytes) -> Any:
    """Load mutated bytes: the arrays are those that the second reader finds, all of them, or the file is refused."""
    path.write_bytes(data)
    found = read(path)
    try:
        expected = reference(data)
    except Exception:
        assert found is REFUSED, f"loaded what the format does not allow: {data[:200]!r}"
        return found
    if found is not REFUSED:  # its own entry in the metadata may be broken while the rest is whole
        assert fingerprints(leaves(found)) == fingerprints(expected.values())
    return found


# ---------------------------------------------------------------- mutations
@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


def a_state() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (2, 3)).astype(code) for name, code in DTYPES.items()}
    return {"arrays": arrays, "groups": [{"lr": 0.1, "betas": (0.9, 0.99)}], 3: np.float32(2.0), "none": None}


def written(state: Any, path: Path) -> bytes:
    gf.save(path, state)
    return path.read_bytes()


def test_the_second_reader_reads_what_is_right(path: Path) -> None:
    """The test of the test: both readers agree about whole files, so a refusal below is one for a reason."""
    state = a_state()
    data = written(state, path)
    assert fingerprints(reference(data).values()) == fingerprints(state["arrays"].values())
    assert equal(state | {3: 2.0}, check(path, data))


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    data = written({"a": np.ones((2, 3)), "b": [np.arange(3), {"c": np.array(True)}]}, path)
    assert all(check(path, data[:end]) is REFUSED for end in range(len(data)))


def test_a_file_with_anything_appended_is_refused(path: Path) -> None:
    data = written(a_state(), path)
    assert all(check(path, data + tail) is REFUSED for tail in (b"\0", b"{}", data, b" " * 4096))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(state=STATES, edits=st.data())
def test_bytes_changed_anywhere(path: Path, state: Any, edits: st.DataObject) -> None:
    """Flipped, overwritten, inserted, removed and exchanged bytes, in the header more often than in the data."""
    data = bytearray(written(state, path))
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(edits.draw(st.integers(1, 4))):
        at = edits.draw(st.integers(0, max(0, min(header + 8, len(data)) - 1)))
        match edits.draw(st.sampled_from(["flip", "write", "insert", "remove", "exchange"])):
            case "flip":
                data[at] ^= 1 << edits.draw(st.integers(0, 7))
            case "write":
                data[at] = edits.draw(st.sampled_from(b'{}[]",:0123456789-FIUB. \0\xff'))
            case "insert":
                data[at:at] = edits.draw(st.sampled_from([b"0", b",", b'"', b"[", b"\xff", b"-1", b"1e9", b"null"]))
            case "remove":
                del data[at : at + edits.draw(st.integers(1, 4))]
            case "exchange":
                to = edits.draw(st.integers(0, len(data) - 1))
                data[at], data[to] = data[to], data[at]
    check(path, bytes(data))


NUMBERS = st.integers(-2, 20) | st.sampled_from([2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 1.0, None])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPES, *OTHERS, "F33", "", "f32", None, 3]),
        "shape": st.lists(NUMBERS, max_size=3) | st.sampled_from([[1] * 65, "2", None]),
        "data_offsets": st.tuples(NUMBERS, NUMBERS).map(list) | st.lists(NUMBERS, max_size=3),
    },
    optional={"more": st.just(1)},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.dictionaries(st.sampled_from(["a", "b", "c", "", "__metadata__"]), ENTRIES, max_size=3),
    size=st.integers(0, 40),
)
def test_headers_of_nonsense(path: Path, header: dict[str, Any], size: int) -> None:
    """Overlaps, holes, wrong orders, sizes that do not match, negative and absurd numbers, dtypes there are not."""
    check(path, packed(json.dumps(header).encode(), bytes(size)))


def packed(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kinds=st.lists(st.tuples(st.sampled_from([*DTYPES]), st.lists(st.integers(0, 3), max_size=3)), max_size=4),
    moves=st.lists(st.integers(-9, 9), min_size=8, max_size=8),
    fill=st.integers(0, 255),
    order=st.randoms(use_true_random=False),
)
def test_offsets_moved(
    path: Path, kinds: list[tuple[str, list[int]]], moves: list[int], fill: int, order: random.Random
) -> None:
    """Right headers, in any order, and the same with offsets moved a little."""
    header, at = [], 0
    for i, (dtype, shape) in enumerate(kinds):
        end = at + math.prod(shape) * np.dtype(DTYPES[dtype]).itemsize
        header.append((f"t{i}", entry(shape, at, end, dtype)))
        at = end
    order.shuffle(header)
    body = bytes([fill]) * at
    found = check(path, packed(json.dumps(dict(header)).encode(), body))
    booleans = any(dtype == "BOOL" and math.prod(shape) for dtype, shape in kinds)
    assert (found is REFUSED) == (booleans and fill > 1)
    for (_, about), low, high in zip(header, moves[::2], moves[1::2], strict=False):
        about["data_offsets"] = [about["data_offsets"][0] + low, about["data_offsets"][1] + high]
    check(path, packed(json.dumps(dict(header)).encode(), body))


TWO = b'"dtype":"F32","shape":[2],"data_offsets":[0,8]'
ABSURD: dict[str, bytes] = {
    "an empty file": b"",
    "seven bytes": b"\0" * 7,
    "a header of no bytes": packed(b""),
    "a header that is no object": packed(b"[]"),
    "a header that is longer than the file": packed(b"{}", length=1000),
    "a header of 100 MB that is not there": packed(b"{}", length=LARGEST_HEADER),
    "a header beyond the limit": packed(b"{}", length=LARGEST_HEADER + 1),
    "a header of half the memory there is": packed(b"{}", length=2**63),
    "a header of 2**64 - 1 bytes": packed(b"{}", length=2**64 - 1),
    "a header that is no text": packed(b'{"\xff\xfe":1}'),
    "a header in UTF-16": packed('{"a": 1}'.encode("utf-16")),
    "a name twice": packed(b'{"a":{' + TWO + b'},"a":{' + TWO.replace(b"F32", b"I32") + b"}}", bytes(8)),
    "a field twice": packed(b'{"a":{"dtype":"I32",' + TWO + b"}}", bytes(8)),
    "metadata twice": packed(b'{"__metadata__":{"a":"1","a":"2"},"a":{' + TWO + b"}}", bytes(8)),
    "metadata that is no text": packed(b'{"__metadata__":{"a":1}}'),
    "deep lists": packed(b"[" * 100_000),
    "deep lists in an entry": packed(b'{"a":' + b"[" * 100_000),
    "deep objects": packed(b'{"a":' * 100_000),
    "a shape with no elements and an absurd length": packed(json.dumps({"a": entry([0, 2**64 - 1], 0, 0)}).encode()),
    "a shape that overflows": packed(json.dumps({"a": entry([2**32, 2**32], 0, 0)}).encode()),
    "a tensor of an exabyte": packed(json.dumps({"a": entry([2**58], 0, 2**60)}).encode(), bytes(8)),
    "booleans that are none": packed(json.dumps({"a": entry([2], 0, 2, "BOOL")}).encode(), b"\x02\xff"),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_files_cost_nothing_and_are_refused(path: Path, kind: str) -> None:
    """No memory is taken for what is not there, and no time."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, monotonic()
    assert check(path, ABSURD[kind]) is REFUSED
    assert monotonic() - start < 2.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB; on a Mac bytes, which is stricter


STRUCTURES = [
    "{", "null", "[]", "3", '"text"', '{"version": 1}', '{"state": 1}', '{"version": 1, "state": {"tensor": "b"}}',
    '{"version": 1, "state": {"tensor": 3}}', '{"version": 1, "state": {"tensor": ["a"]}}',
    '{"version": true, "state": {"tensor": "a"}}', '{"version": 1, "version": 1, "state": {"tensor": "a"}}',
    '{"version": 1, "state": {"dict": [["k", {"tensor": "a"}], ["k", 1]]}}',
    '{"version": 1, "state": {"dict": [[null, {"tensor": "a"}]]}}',
    '{"version": 1, "state": {"dict": [[[], {"tensor": "a"}]]}}',
    '{"version": 1, "state": {"dict": [["k"]]}}', '{"version": 1, "state": {"dict": {"k": {"tensor": "a"}}}}',
    '{"version": 1, "state": [{"tensor": "a"}, {"tensor": "a"}]}', '{"version": 1, "state": {"tuple": "a"}}',
    '{"version": 1, "state": {"object": "os.system"}}', '{"version": 1, "state": ' + "[" * 100_000 + "}",
    '{"version": 1, "state": 1' + "0" * 5000 + "}",
]  # fmt: skip


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda text: text[:60])
def test_a_structure_that_does_not_fit_loads_nothing(path: Path, structure: str) -> None:
    header = {"__metadata__": {"gradflow": structure}, "a": entry([2], 0, 8)}
    assert check(path, packed(json.dumps(header).encode(), bytes(8))) is REFUSED


# ---------------------------------------------------------------- other files
def test_files_of_other_programs_are_refused_and_never_run(path: Path) -> None:
    mark = path.parent / "run"

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(mark),)

    others = [pickle.dumps(Bomb(), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    with zipfile.ZipFile(path.parent / "archive", "w") as archive:  # as torch.save writes it
        archive.writestr("archive/data.pkl", pickle.dumps({"weight": Bomb()}))
    others.append((path.parent / "archive").read_bytes())
    np.save(path.parent / "array.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    others.append((path.parent / "array.npy").read_bytes())
    for pickled in others[: pickle.HIGHEST_PROTOCOL + 1]:  # where a careless reader might look for an object
        others.append(packed(b'{"__metadata__":{"gradflow":' + json.dumps(pickled.decode("latin1")).encode() + b"}}"))
        others.append(packed(pickled))
    for data in others:
        assert check(path, data) is REFUSED
    assert not mark.exists()


def test_a_file_of_pytorch_is_refused(path: Path) -> None:
    torch = pytest.importorskip("torch")
    for modern in (True, False):
        torch.save({"weight": torch.ones(2)}, path, _use_new_zipfile_serialization=modern)
        assert read(path) is REFUSED


@pytest.mark.skipif(os.name != "posix", reason="devices, pipes and links")
def test_what_is_no_file_is_an_error_at_once(path: Path) -> None:
    os.mkfifo(path)
    links = path.parent / "loop"
    links.symlink_to(links)
    for device in (path, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(StateDictError, match="is a device or a pipe"):
            gf.load(device)
    absent = path.parent / "absent"
    for wrong, kind in {path.parent: IsADirectoryError, links: OSError, absent: FileNotFoundError}.items():
        with pytest.raises(kind, match=str(wrong)):
            gf.load(wrong)


# ---------------------------------------------------------------- a bad file leaves a model and its optimizer alone
def bits(state: Any) -> Any:
    return fingerprints(leaves(state)), repr(state)


def test_a_bad_file_leaves_the_model_and_its_optimizer_as_they_were(path: Path) -> None:
    x = gf.tensor([[1.0, 2.0, 3.0]])
    model = nn.MLP([3, 4, 2])
    optimizer = optim.Adam(model.parameters())
    for _ in range(2):
        model(x).sum().backward()
        optimizer.step()
    data = written({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    model(x).sum().backward()
    optimizer.step()
    held = [(parameter, parameter._data) for parameter in model.parameters()]
    before = bits(model.state_dict()), bits(optimizer.state_dict())
    length = 8 + int.from_bytes(data[:8], "little")
    text = data[8:length].decode()
    bad = [data[:-1], data[: length + 3], data + b"\0", ABSURD["a name twice"], pickle.dumps({"model": {}})]
    for old, new in [("F32", "I64"), ("[4,3]", "[3,4]"), ("exp_avg_sq", "exp_avg_qs")]:
        assert old in text
        bad.append(packed(text.replace(old, new, -1 if old == "exp_avg_sq" else 1).encode(), data[length:]))
    for mutated in bad:
        path.write_bytes(mutated)
        with pytest.raises(GradflowError, match="othing was loaded"):  # noqa: PT012  (the second may be the one)
            state = gf.load(path)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        after = bits(model.state_dict()), bits(optimizer.state_dict())
        if mutated is not bad[-1]:  # there the model's part is whole, and was loaded
            assert after[0] == before[0]
        assert after[1] == before[1]
        assert all(parameter._data is array for parameter, array in held)


def test_fit_replaces_a_bad_checkpoint_by_a_whole_one(path: Path) -> None:
    path.write_bytes(b"not a checkpoint")
    model = nn.Linear(1, 1)
    batch = gf.ones((4, 1)), gf.ones((4, 1))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    training.fit(model, nn.MSELoss(), optimizer, [batch], epochs=2, checkpoint=path, progress=False)
    assert model.load_state_dict(gf.load(path)) == ([], [])


# ---------------------------------------------------------------- SIGKILL during a save
WRITER = """
import sys
import numpy as np
import gradflow as gf
path, size = sys.argv[1], int(sys.argv[2])
step = int(sys.argv[3])
print("ready", flush=True)
while True:
    step += 1
    gf.save(path, {"step": step, "weights": [np.full(size, step), np.full(size + 1, -step)]})
"""


def start(path: Path, size: int, step: int, *, prelude: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", prelude + WRITER, str(path), str(size), str(step)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "ready\n"
    return writer


def kill(writer: subprocess.Popen[str]) -> None:
    os.kill(writer.pid, signal.SIGKILL)
    assert writer.wait(10) == -signal.SIGKILL
    writer.stdout.close()  # type: ignore[union-attr]


def whole(path: Path, size: int) -> int:
    """The step of the state in the file, which is one that was saved, complete."""
    state = gf.load(path)
    step = state["step"]
    assert equal({"step": step, "weights": [np.full(size, step), np.full(size + 1, -step)]}, state)
    return int(step)


def left_over(folder: Path) -> list[str]:
    """What is beside the checkpoint, named as the documentation says."""
    names = [file.name for file in folder.iterdir() if file.name != "state.safetensors"]
    assert all(re.fullmatch(r"\.gradflow-\w+\.tmp|\.tmp\w+", name) for name in names)
    return names


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_process_killed_while_it_saves_leaves_a_whole_file(path: Path) -> None:
    """Killed at moments of chance while it writes 3 MB over and over: always one of the states, never an older one."""
    size, chance = 200_000, random.Random(0)
    gf.save(path, {"step": 0, "weights": [np.full(size, 0), np.full(size + 1, 0)]})
    last = 0
    for kills in range(1, 13):
        writer = start(path, size, last)
        sleep(chance.uniform(0.0, 0.05))
        kill(writer)
        step = whole(path, size)
        assert step >= last
        last = step
        assert len(left_over(path.parent)) <= 2 * kills  # gradflow's and the safetensors package's
    assert last > 0
    assert left_over(path.parent), "no kill met a save: the test shows nothing"


PAUSES: dict[str, str] = {  # what is patched in the writer so that it stops and waits for the kill: at each stage once
    "before anything is written": "safetensors.numpy.save_file = stop",
    "with half of the file written": """
def half(arrays, name, metadata):
    save_file(arrays, name, metadata=metadata)
    import os
    os.truncate(name, os.path.getsize(name) // 2)
    stop()
safetensors.numpy.save_file = half""",
    "before the file is on the disk": "os.fsync = stop",
    "before the rename": "os.replace = stop",
    "after the rename": """
def renamed(source, target):
    replace(source, target)
    stop()
os.replace = renamed""",
}
PRELUDE = """
import os, sys, time
import safetensors.numpy
save_file, replace = safetensors.numpy.save_file, os.replace
def stop(*args, **kwargs):
    print("paused", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
@pytest.mark.parametrize("stage", PAUSES)
def test_a_process_killed_at_each_stage_of_a_save(path: Path, stage: str) -> None:
    gf.save(path, {"step": 0, "weights": [np.full(10, 0), np.full(11, 0)]})
    writer = start(path, 10, 0, prelude=PRELUDE + PAUSES[stage])
    assert writer.stdout is not None
    assert writer.stdout.readline() == "paused\n"
    kill(writer)
    assert whole(path, 10) == (1 if stage == "after the rename" else 0)
    assert len(left_over(path.parent)) == (0 if stage == "after the rename" else 1)
    gf.save(path, {"step": 7, "weights": [np.full(10, 7), np.full(11, -7)]})  # what is left over is in nobody's way
    assert whole(path, 10) == 7
