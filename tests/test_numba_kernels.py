"""The compiled kernels against PyTorch and NumPy: on the layouts they take and on those they leave to NumPy's kernels.

The registry suite holds every primitive of every backend against its rules; here the compiled paths are driven on
purpose, with sizes beyond every threshold, NaN and ∞ among the values, and mistakes among the indices.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("numba")

import gradflow as gf
from gradflow.backend import ARRAY, resolve
from gradflow.errors import ArgumentError, BackendMismatchError, IndexRangeError
from gradflow.ops.neural import softmax_cross_entropy
from gradflow.primitive import namespace
from gradflow_numba import indexing
from gradflow_numba.kernels import KERNELS, RESIDUAL_KERNELS, VJPS, fits

XP, NUMPY = namespace("numba"), namespace("numpy")
DTYPES = [np.float32, np.float64]
dtypes = pytest.mark.parametrize("dtype", DTYPES)
SHAPES = [(1,), (5,), (3, 7), (64, 10), (129, 65), (2, 3, 4)]


def tolerance(dtype, size=1.0):
    """What rounding leaves of results whose terms are of this size."""
    if dtype == np.float32:
        return {"rtol": 3e-6, "atol": 1e-6 * size}
    return {"rtol": 1e-13, "atol": 1e-14 * size}


def draw(shape, dtype, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * 3).astype(dtype)


def torch_of(name):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    return {
        "exp": torch.exp,
        "sigmoid": torch.sigmoid,
        "softplus": functional.softplus,
        "tanh": torch.tanh,
        "relu": functional.relu,
        "erf": torch.erf,
        "silu": functional.silu,
        "gelu": functional.gelu,
        "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
        "softmax": lambda x: functional.softmax(x, -1),
        "log_softmax": lambda x: functional.log_softmax(x, -1),
        "layer_norm": lambda x: functional.layer_norm(x, x.shape[-1:]),
        "max": lambda x: torch.amax(x, -1),
        "min": lambda x: torch.amin(x, -1),
    }[name]


def gradflow_of(name):
    return {
        "gelu_tanh": lambda x: gf.gelu(x, approximate="tanh"),
        "max": lambda x: x.max(axis=-1),
        "min": lambda x: x.min(axis=-1),
    }.get(name) or getattr(gf, name)


FUNCTIONS = [
    "erf", "exp", "gelu", "gelu_tanh", "layer_norm", "log_softmax", "max", "min", "relu", "sigmoid", "silu", "softmax",
    "softplus", "tanh",
]  # fmt: skip


def arrangements(x):
    """The same values in other memory: steps, turned axes, read-only, an offset that breaks the alignment."""
    yield x
    wide = np.empty((*x.shape[:-1], 2 * x.shape[-1]), x.dtype)
    wide[..., ::2] = x
    yield wide[..., ::2]
    yield np.asfortranarray(x)
    locked = x.copy()
    locked.flags.writeable = False
    yield locked
    shifted = np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    shifted[...] = x
    yield shifted


@dtypes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_are_pytorchs(name, dtype):
    torch = pytest.importorskip("torch")
    for shape in (*SHAPES, (70, 90)):
        x, g = draw(shape, dtype), None
        theirs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        out = torch_of(name)(theirs)
        g = draw(tuple(out.shape), dtype, 1)
        out.backward(torch.tensor(g, dtype=torch.float64))
        for moved, seed in zip(arrangements(x), arrangements(g) if g.ndim else [g] * 5, strict=True):
            ours = gf.asarray(moved, backend="numba").detach().requires_grad_()
            value = gradflow_of(name)(ours)
            value.backward(gf.asarray(seed, backend="numba"))
            assert value.dtype == ours.grad.dtype == dtype
            np.testing.assert_allclose(value.numpy(), out.detach().numpy(), **tolerance(dtype))
            np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), **tolerance(dtype, size=abs(g).max()))


@dtypes
@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_and_infinity_come_out_as_from_the_numpy_backend(name, dtype):
    special = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e4, -1e4, 1.0], dtype)
    for row in special:
        x = draw((1000, 9), dtype)
        x[::7, 4] = row
        x[::5, 0] = special[3]
        with gf.no_grad(), np.errstate(all="ignore"):
            ours, theirs = (gradflow_of(name)(gf.asarray(x, backend=b)).numpy() for b in ("numba", "numpy"))
        np.testing.assert_allclose(ours, theirs, **tolerance(dtype))


@dtypes
@pytest.mark.parametrize("ignore_index", [-100, 2])
@pytest.mark.parametrize("labels_dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_cross_entropy_and_its_gradient_are_pytorchs(dtype, ignore_index, labels_dtype):
    torch = pytest.importorskip("torch")
    for rows, classes in ((1, 3), (64, 10), (700, 33)):
        x = draw((rows, classes), dtype)
        labels = np.random.default_rng(1).integers(0, classes, rows).astype(labels_dtype)
        labels[0] = 0  # at least one counts
        theirs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
        wanted = torch.tensor(labels.astype(np.int64))
        (torch.nn.functional.cross_entropy(theirs, wanted, ignore_index=ignore_index) * 3).backward()
        ours = gf.tensor(x, backend="numba", requires_grad=True)
        loss = softmax_cross_entropy(ours, gf.asarray(labels, backend="numba"), ignore_index=ignore_index)
        (loss * 3).backward()
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), **tolerance(dtype))


@dtypes
def test_cross_entropy_is_exact_for_huge_logits_and_where_no_row_counts(dtype):
    x = gf.tensor(np.array([[1e4, 0.0, -np.inf], [-1e4, -1e4, -1e4]], dtype), backend="numba", requires_grad=True)
    loss = softmax_cross_entropy(x, gf.tensor([1, 2], backend="numba"), ignore_index=-100)
    np.testing.assert_allclose(float(loss), (1e4 + np.log(3)) / 2, rtol=1e-6)
    loss.backward()
    np.testing.assert_allclose(x.grad.numpy(), [[0.5, -0.5, 0.0], [1 / 6, 1 / 6, -1 / 3]], rtol=1e-5)
    nothing = softmax_cross_entropy(x, gf.tensor([7, 7], backend="numba"), ignore_index=7)
    assert np.isnan(float(nothing))
    x.grad = None
    nothing.backward()
    assert not x.grad.numpy().any()


@pytest.mark.parametrize("wrong", [-1, 3, 2**62])
def test_a_wrong_label_is_the_same_error_as_on_numpy(wrong):
    said = []
    for backend in ("numba", "numpy"):
        x, labels = gf.zeros((4, 3), backend=backend), gf.tensor([0, 1, wrong, 2], backend=backend)
        with pytest.raises(ArgumentError) as caught:
            softmax_cross_entropy(x, labels, ignore_index=-100)
        said.append(str(caught.value))
    assert said[0] == said[1] and f"label {wrong} at index 2 for 3 classes" in said[0]


@pytest.mark.parametrize(("number", "ignore_index"), [(2**64 - 100, -100), (2**64 - 1, -1)])
def test_a_large_unsigned_label_is_never_taken_for_the_ignored_one(number, ignore_index):
    logits, labels = gf.zeros((2, 3), backend="numba"), gf.tensor(np.array([0, number], np.uint64), backend="numba")
    with pytest.raises(ArgumentError, match=f"label {number} at index 1 for 3 classes"):
        gf.cross_entropy(logits, labels, ignore_index=ignore_index)


@pytest.mark.parametrize("ignore_index", [2**70, -(2**70)])
def test_an_ignore_index_that_no_label_can_be_ignores_nothing(ignore_index):
    logits, labels = gf.zeros((2, 3), backend="numba"), gf.tensor([0, 2], backend="numba")
    assert float(gf.cross_entropy(logits, labels, ignore_index=ignore_index)) == pytest.approx(np.log(3))


@dtypes
def test_binary_cross_entropy_is_pytorchs_and_silences_an_infinity_that_does_not_count(dtype):
    torch = pytest.importorskip("torch")
    x, t = draw((90, 70), dtype), (draw((90, 70), dtype, 1) > 0).astype(dtype)
    theirs = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.binary_cross_entropy_with_logits(theirs, torch.tensor(t, dtype=torch.float64)).backward()
    ours = gf.tensor(x, backend="numba", requires_grad=True)
    gf.binary_cross_entropy_with_logits(ours, gf.tensor(t, backend="numba")).backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), **tolerance(dtype))
    terms = XP.binary_cross_entropy_terms(np.array([np.inf, -np.inf, np.inf], dtype), np.array([1, 0, 0], dtype))
    assert terms.tolist() == [0, 0, np.inf]


@dtypes
@pytest.mark.parametrize("width", [3, 40])
def test_layer_norm_of_a_row_whose_variance_is_infinite_is_zero_as_on_numpy(width, dtype):
    x = np.zeros((9, width), dtype)
    x[4, 0], x[4, 1] = np.finfo(dtype).max / 2, -np.finfo(dtype).max / 2
    ones, zeros = np.ones(width, dtype), np.zeros(width, dtype)
    with np.errstate(over="ignore"):
        assert not NUMPY.layer_norm(x, ones, zeros, axis=(1,), eps=1e-5).any()
    assert not XP.layer_norm(x, ones, zeros, axis=(1,), eps=1e-5).any()


# ---------------------------------------------------------------- tables of vectors
@dtypes
@pytest.mark.parametrize("index_dtype", [np.int64, np.int32, np.uint8, np.uint64])
def test_rows_are_added_where_their_numbers_say(dtype, index_dtype):
    rng = np.random.default_rng(0)
    index, rows = rng.integers(0, 50, (40, 3)).astype(index_dtype), rng.standard_normal((40, 3, 6)).astype(dtype)
    expected = np.zeros((50, 6), np.float64)
    np.add.at(expected, index.astype(np.int64), rows)
    np.testing.assert_allclose(XP.scatter_add(rows, index, shape=(50, 6), key=(ARRAY,)), expected, **tolerance(dtype))
    if index_dtype in (np.int64, np.int32):
        moved = XP.scatter_add(rows, index - index_dtype(50), shape=(50, 6), key=(ARRAY,))
        np.testing.assert_allclose(moved, expected, **tolerance(dtype))


@pytest.mark.parametrize("wrong", [50, -51, 2**40])
def test_a_row_that_is_not_there_is_never_written(wrong):
    rows, index = np.ones((3, 6), np.float32), np.array([0, wrong, 1])
    weight = gf.zeros((50, 6), backend="numba", requires_grad=True)
    with pytest.raises(IndexRangeError):
        weight[gf.tensor(index, backend="numba")]
    around = np.zeros((150, 6), np.float32)
    assert not indexing._add_rows(rows, index, around[50:100])  # the compiled loop itself
    assert not around.any()


# ---------------------------------------------------------------- optimizers
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [((7,), np.float32), ((7,), np.float64), ((300, 5, 40_000, 11), np.float32), ((300_000, 3), np.float32)],
)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"weight_decay": 0.1, "maximize": True}])
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "SGD", "Momentum", "Nesterov"])
def test_optimizers_step_as_pytorchs_do(kind, options, sizes, dtype):
    torch = pytest.importorskip("torch")
    settings = {
        "Adam": {"lr": 0.01}, "AdamW": {"lr": 0.01}, "SGD": {"lr": 0.1},
        "Momentum": {"lr": 0.1, "momentum": 0.9, "dampening": 0.1},
        "Nesterov": {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    }[kind]  # fmt: skip
    name = kind if kind.startswith("Adam") else "SGD"
    start = [draw(n, dtype, n) for n in sizes]
    ours = [gf.Parameter(gf.tensor(a, backend="numba")) for a in start]
    theirs = [torch.tensor(a, requires_grad=True) for a in start]
    mine = getattr(gf.optim, name)(ours, **settings, **options)
    other = getattr(torch.optim, name)(theirs, **settings, **options)
    for step in range(4):
        for o, t in zip(ours, theirs, strict=True):
            g = draw(o.shape, dtype, step)
            o.grad, t.grad = gf.tensor(g, backend="numba"), torch.tensor(g)
        mine.step()
        other.step()
    for o, t in zip(ours, theirs, strict=True):
        close = {"rtol": 2e-5, "atol": 2e-6} if dtype == np.float32 else {"rtol": 1e-11, "atol": 1e-12}
        np.testing.assert_allclose(o.numpy(), t.detach().numpy(), **close)


def test_a_dying_moment_becomes_zero_and_no_subnormal_number():
    p = gf.Parameter(gf.tensor(np.ones(100, np.float32), backend="numba"))
    optimizer = gf.optim.Adam([p], lr=0.01)
    for step in range(1200):
        p.grad = gf.tensor(np.full(100, 1.0 if step == 0 else 0.0, np.float32), backend="numba")
        optimizer.step()
    moment = optimizer.state_dict()["state"][0]["exp_avg"].numpy()
    assert not moment.any()


# ---------------------------------------------------------------- random numbers
@pytest.mark.parametrize("shape", [(), (1,), (3,), (4, 5), (1023,), (1024,), (1025,), (3000, 3), (0, 2)])
@dtypes
def test_uniform_numbers_are_numpys_bit_for_bit_and_normal_ones_to_rounding(shape, dtype):
    for state in ([0, 0], [12345, 7], [2**64 - 1, 2**40], [9, 2**64 - 600]):
        words = np.array(state, np.uint64)
        settings = {"shape": shape, "dtype": np.dtype(dtype)}
        ours, theirs = XP.random_uniform(words, **settings), NUMPY.random_uniform(words, **settings)
        if state[1] > 2**63:  # the counter's carry belongs to NumPy's generator alone: compare up to it
            n = min(ours.size, 4 * (2**64 - 1 - state[1]))
            ours, theirs = ours.reshape(-1)[:n], theirs.reshape(-1)[:n]
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, theirs)
        ours, theirs = XP.random_normal(words, **settings), NUMPY.random_normal(words, **settings)
        if state[1] < 2**63:
            np.testing.assert_allclose(ours, theirs, rtol=1e-6 if dtype == np.float32 else 1e-12, atol=1e-14)


# ---------------------------------------------------------------- the plug-in
def test_arrays_are_numpys_and_a_tensor_carries_its_backend():
    a, b = gf.ones(3, backend="numba"), gf.ones(3, backend="numpy")
    assert type(a.data) is np.ndarray and a.backend.name == "numba"
    with pytest.raises(BackendMismatchError):
        a + b
    assert a.to("numpy").backend.name == "numpy"
    assert set(resolve("numba").versions()) == {"numba", "llvmlite", "numpy"}


def test_every_kernel_of_numpys_namespace_is_there():
    numpy_backend = resolve("numpy")
    assert KERNELS.keys() >= numpy_backend.kernels.keys()
    assert RESIDUAL_KERNELS.keys() >= numpy_backend.residual_kernels.keys()
    assert VJPS.keys() >= numpy_backend.vjps.keys()
    assert KERNELS is not numpy_backend.kernels and VJPS is not numpy_backend.vjps


def test_only_usual_memory_reaches_compiled_code():
    x = np.zeros((4, 6), np.float32)
    assert fits(x) and not fits(x.T) and not fits(x[:, ::2]) and not fits(x.astype(int)) and not fits(x.astype(">f4"))
    assert [fits(moved) for moved in arrangements(x)] == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "Numba is not installed."),
        ("0.60.0", "Numba 0.60.0 is too old: it needs 0.61 or newer."),
        ("0.61.0", None),
    ],
)
def test_it_says_why_it_cannot_be_used(monkeypatch, found, said):
    from importlib import metadata

    import gradflow_numba

    def version(name):
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(metadata, "version", version)
    assert gradflow_numba.plugin.unavailable() == said


def test_with_compilation_switched_off_it_is_not_available(monkeypatch):
    import gradflow_numba

    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    assert gradflow_numba.plugin.unavailable() == "NUMBA_DISABLE_JIT is set: nothing would be compiled."
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "0")
    assert gradflow_numba.plugin.unavailable() is None


def test_asking_for_it_does_not_import_numba():
    code = "import sys, gradflow_numba as g; g.plugin.unavailable(); print('numba' in sys.modules)"
    assert run(code) == "False"


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# ---------------------------------------------------------------- code on disk
USE = """
import numpy as np, gradflow as gf
from gradflow_numba import elementwise
print(gf.sigmoid(gf.tensor(np.zeros(8, np.float32), backend="numba")).numpy()[0], end=" ")
print(sum(elementwise._sigmoid.stats.cache_hits.values()))
"""


def test_machine_code_is_kept_and_belongs_to_its_source(tmp_path):
    """A second process loads what the first compiled; one whose sources differ anywhere compiles anew."""
    root = Path(sys.modules["gradflow_numba"].__file__).parent
    here = tmp_path / "packages"
    shutil.copytree(root, here / "gradflow_numba", ignore=shutil.ignore_patterns("__pycache__"))
    path = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": path}
    assert run(USE, **settings) == "0.5 0"
    assert run(USE, **settings) == "0.5 1"
    source = here / "gradflow_numba" / "elementary.py"
    source.write_text(source.read_text().replace("return (e if x < f(0) else f(1)) / (f(1) + e)", "return f(0.25)"))
    assert run(USE, **settings) == "0.25 0"


HITS = """
from gradflow_numba import fixed, kernels_on_disk
print(kernels_on_disk.compiled("    pass").cache_hits, fixed.fixed("copy").cache_hits)
"""


def test_the_kernels_of_programs_are_found_again(tmp_path):
    settings = {"NUMBA_CACHE_DIR": str(tmp_path / "numba"), "GRADFLOW_CACHE_DIR": str(tmp_path / "gradflow")}
    assert run(HITS, **settings) == "0 0"
    assert run(HITS, **settings) == "1 1"


def test_without_a_place_for_machine_code_it_is_compiled_in_every_process(monkeypatch):
    import numba

    from gradflow_numba import jit

    numba_njit = numba.njit

    def njit(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return numba_njit(*args, **options)

    monkeypatch.setattr(numba, "njit", njit)

    def double(x):
        return x + x

    assert jit.loop(double)(3.0) == 6.0
    assert jit.scalar(double)(3.0) == 6.0
