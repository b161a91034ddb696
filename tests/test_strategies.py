"""The strategies of gradflow.testing produce what they promise, in all its variety, and the same again."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import gradflow as gf
from gradflow import nn
from gradflow.backend import resolve
from gradflow.compiler import trace
from gradflow.errors import ArgumentError
from gradflow.primitive import REGISTRY, primitive
from gradflow.tensor import OPS
from gradflow.testing import layers as layers_module
from gradflow.testing import operands as operands_module
from gradflow.testing.backends import without_kernels
from gradflow.testing.instructions import INSTRUCTIONS, LARGEST, Builder, Step, UnfitError, instruction
from gradflow.testing.layers import batches, constructs, layers, loss_classes, losses, modules
from gradflow.testing.operands import calls, differentiable, has_calls
from gradflow.testing.program import Program, programs
from gradflow.testing.strategies import (
    arrays,
    axes,
    broadcastable_shapes,
    direction,
    dtypes,
    generators,
    index_keys,
    layouts,
    nasty_values,
    shapes,
    spread,
    stretchable_shapes,
)


def drawn(strategy: SearchStrategy[Any], count: int = 100) -> list[Any]:
    """Examples of a strategy, always the same."""
    found: list[Any] = []

    @settings(max_examples=count, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def collect(example: Any) -> None:
        found.append(example)

    collect()
    return found


def kinds(strategy: SearchStrategy[Any], kind: Callable[[Any], Any], count: int = 100) -> set[Any]:
    """The kinds of example that a strategy draws."""
    return {kind(example) for example in drawn(strategy, count)}


# ---------------------------------------------------------------- the package
def test_importing_the_kit_imports_no_hypothesis() -> None:
    code = "import sys, gradflow.testing, gradflow.testing.backends; sys.exit('hypothesis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- shapes, axes, dtypes
@given(count=st.integers(1, 4), data=st.data())
def test_broadcastable_shapes_broadcast(count: int, data: st.DataObject) -> None:
    found = data.draw(broadcastable_shapes(count))
    assert len(found) == count
    assert len(np.broadcast_shapes(*found)) <= 3


@given(shape=shapes(), data=st.data())
def test_stretchable_shapes_broadcast_to_the_shape(shape: tuple[int, ...], data: st.DataObject) -> None:
    assert np.broadcast_shapes(data.draw(stretchable_shapes(shape)), shape) == shape


def test_shapes_are_of_any_number_of_axes_and_some_empty() -> None:
    assert kinds(shapes(), len) == {0, 1, 2, 3}
    assert kinds(shapes(), lambda shape: 0 in shape) == {True, False}
    assert kinds(broadcastable_shapes(2), lambda pair: pair[0] == pair[1]) == {True, False}
    assert min(min(shape) for shape in drawn(shapes(min_dims=1, min_side=2))) == 2


@given(ndim=st.integers(0, 4), data=st.data())
def test_axes_are_taken_by_numpy(ndim: int, data: st.DataObject) -> None:
    x = np.ones((2,) * ndim)
    written = data.draw(axes(ndim))
    assert x.sum(axis=written).ndim == ndim - len(range(ndim) if written is None else np.atleast_1d(written))
    canonical = data.draw(axes(ndim, canonical=True))
    assert isinstance(canonical, tuple) and list(canonical) == sorted({a % ndim for a in canonical})
    assert len(data.draw(axes(ndim, min_size=1, canonical=True))) >= min(1, ndim)


def test_axes_are_written_in_every_way() -> None:
    def way(axis: Any) -> str:
        if isinstance(axis, tuple):
            return f"tuple of {len(axis)}" + " from the end" * any(a < 0 for a in axis)
        return "None" if axis is None else "integer" + " from the end" * (axis < 0)

    assert kinds(axes(2), way) == {
        "None", "integer", "integer from the end", "tuple of 0", "tuple of 1", "tuple of 1 from the end", "tuple of 2",
        "tuple of 2 from the end",
    }  # fmt: skip
    assert (0, 2) in drawn(axes(3), 150) and (2, 0) in drawn(axes(3), 150)


def test_dtypes_are_all_of_their_kinds() -> None:
    assert kinds(dtypes(), str) == {"float32", "float64"}
    assert kinds(dtypes("biu"), str) == {
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"
    }  # fmt: skip


# ---------------------------------------------------------------- values
@given(shape=shapes(max_side=4), dtype=dtypes(), positive=st.booleans(), data=st.data())
def test_smooth_arrays_have_no_ties_and_nothing_near_0(
    shape: tuple[int, ...], dtype: Any, positive: bool, data: st.DataObject
) -> None:
    x = data.draw(arrays(shape, dtype, "positive" if positive else "smooth"))
    assert x.shape == shape and x.dtype == dtype
    sizes = np.sort(np.abs(x).ravel())
    assert np.all((sizes >= 0.3) & (sizes <= 2.0))
    assert np.all(np.diff(sizes) >= 0.5 * 1.7 / max(x.size, 1) * 0.99)
    assert not positive or np.all(x > 0)


@given(shape=shapes(), seed=st.integers(0, 100))
def test_several_spread_arrays_share_no_value(shape: tuple[int, ...], seed: int) -> None:
    parts = spread(np.random.default_rng(seed), shape, shape)
    sizes = np.abs(np.concatenate([part.ravel() for part in parts]))
    assert len(np.unique(sizes)) == sizes.size


def test_nasty_arrays_hold_every_kind_of_trouble() -> None:
    for dtype in (np.float32, np.float64):
        limits = np.finfo(dtype)
        for values in ("nasty", "nonfinite"):
            found = np.concatenate([x.ravel() for x in drawn(arrays(shapes(max_side=4), dtype, values), 120)])
            assert found.dtype == dtype
            negative_zeros = np.signbit(found) & (found == 0)
            subnormal = (found != 0) & (np.abs(found) < limits.tiny)
            assert np.any(negative_zeros) and np.any((found == 0) & ~negative_zeros)
            assert np.any(subnormal & (found > 0)) and np.any(subnormal & (found < 0))
            assert {1.0, 1 + limits.eps, limits.tiny, limits.max, limits.min} <= set(found.tolist())
            assert np.any(~np.isfinite(found)) == (values == "nonfinite")
            if values == "nonfinite":
                assert np.any(np.isnan(found)) and np.any(np.isposinf(found)) and np.any(np.isneginf(found))
        tied = [x.size > len(np.unique(x)) for x in drawn(arrays((4,), dtype, "nasty"))]
        assert any(tied) and not all(tied)


@given(dtype=dtypes("biu"), data=st.data())
def test_integer_arrays_are_of_their_dtype(dtype: Any, data: st.DataObject) -> None:
    smooth, nasty = data.draw(arrays((3,), dtype)), data.draw(arrays((3,), dtype, "nasty"))
    assert smooth.dtype == nasty.dtype == dtype
    assert np.all(np.abs(smooth.astype(np.int64)) < 10)
    assert set(nasty.tolist()) <= set(nasty_values(dtype))
    if dtype.kind != "b":
        assert {np.iinfo(dtype).min, np.iinfo(dtype).max} <= set(nasty_values(dtype))


def test_values_that_there_are_not_are_refused() -> None:
    with pytest.raises(ArgumentError, match="arrays with values='odd'") as caught:
        find(arrays((3,), values="odd"), lambda x: True)
    assert 'fix: arrays(shape, values="nasty")' in str(caught.value)


def test_arrays_take_strategies_of_shapes_and_dtypes() -> None:
    found = drawn(arrays(shapes(), dtypes("bf")))
    assert {x.dtype.name for x in found} == {"bool", "float32", "float64"}
    assert {x.ndim for x in found} == {0, 1, 2, 3}


# ---------------------------------------------------------------- layouts
@given(
    array=arrays(shapes(), dtypes("biuf"), "nonfinite"), writeable=st.sampled_from([None, True, False]), data=st.data()
)
def test_layouts_are_the_same_array(array: np.ndarray, writeable: bool | None, data: st.DataObject) -> None:
    before = array.copy()
    laid = data.draw(layouts(array, writeable=writeable))
    assert (laid.shape, laid.dtype, laid.tobytes()) == (array.shape, array.dtype, array.tobytes())
    assert writeable is None or laid.flags.writeable is writeable
    if laid.flags.writeable and laid.size and writeable:
        laid[...] = 1
    assert array.tobytes() == before.tobytes()
    assert array.flags.writeable


def test_every_layout_occurs() -> None:
    def kind(x: np.ndarray) -> str:
        if 0 in x.strides:
            return "expanded"
        if min(x.strides) < 0:
            return "backwards"
        if x.strides[-1] == 2 * x.itemsize:
            return "strided"
        if x.flags.c_contiguous:
            return "offset" if x.base is not None and x.base.size == x.size + 1 else "C"
        return "F" if x.flags.f_contiguous else "other"

    every = {"C", "F", "strided", "backwards", "offset"}
    x = np.arange(6.0).reshape(3, 2)
    assert kinds(layouts(x), lambda x: (kind(x), x.flags.writeable)) == {(k, w) for k in every for w in (True, False)}
    assert kinds(layouts(np.ones((3, 2))), kind) == every | {"expanded"}
    assert kinds(layouts(np.ones((3, 2)), writeable=True), kind) == every
    rows = np.array([[1.0, 2.0], [1.0, 2.0]])
    assert (0, 8) in kinds(layouts(rows), lambda x: x.strides)
    signed_zeros = np.array([[0.0], [-0.0]])
    assert "expanded" not in kinds(layouts(signed_zeros), kind)


# ---------------------------------------------------------------- keys
@given(shape=shapes(), data=st.data())
def test_keys_are_taken_by_numpy(shape: tuple[int, ...], data: st.DataObject) -> None:
    x = np.zeros(shape)
    x[data.draw(index_keys(shape))]
    basic = data.draw(index_keys(shape, basic=True))
    if isinstance(selected := x[basic], np.ndarray) and selected.size:
        assert np.shares_memory(selected, x)


def test_every_kind_of_part_occurs_in_keys() -> None:
    def parts(key: Any) -> frozenset[str]:
        names = ["bare"] * (not isinstance(key, tuple))
        for part in key if isinstance(key, tuple) else (key,):
            if isinstance(part, np.ndarray):
                names += [
                    f"array of {part.dtype.name}",
                    f"{'mask' if part.dtype == bool else 'indices'} of {part.ndim} axes",
                ]
            elif isinstance(part, slice):
                names.append("slice backwards" if part.step is not None and part.step < 0 else "slice")
            elif isinstance(part, int):
                names.append("integer" if part >= 0 else "integer from the end")
            else:
                names.append(str(part))
        return frozenset(names)

    found = kinds(index_keys((2, 3)), parts, 400)
    basic = {"None", "Ellipsis", "integer", "integer from the end", "slice", "slice backwards", "bare"}
    assert frozenset.union(*found) == basic | {
        "array of bool", "array of int64", "array of int32", "array of uint8", "mask of 1 axes", "mask of 2 axes",
        "indices of 0 axes", "indices of 1 axes", "indices of 2 axes",
    }  # fmt: skip
    for pair in ({"array of int64", "slice"}, {"array of bool", "integer"}, {"array of int64", "array of bool"}):
        assert any(pair <= names for names in found)
    assert frozenset.union(*kinds(index_keys((2, 3), basic=True), parts, 200)) == basic


def test_invalid_keys_occur_on_request_alone() -> None:
    def fits(key: Any) -> bool:
        try:
            np.zeros((2, 0, 3))[key]
        except IndexError:
            return False
        return True

    assert kinds(index_keys((2, 0, 3)), fits, 150) == {True}
    assert kinds(index_keys((2, 0, 3), invalid=True), fits, 150) == {True, False}


# ---------------------------------------------------------------- modules and losses
@pytest.mark.parametrize("layer", layers(), ids=lambda layer: layer.__name__)
@given(data=st.data())
def test_modules_take_their_batches(layer: type[nn.Module], data: st.DataObject) -> None:
    assert layer in layers_module.MODULES, f"enter {layer.__name__} in gradflow/testing/layers.py"
    module = data.draw(modules(layer))
    assert type(module) is layer
    (x,) = data.draw(batches(module))
    assert x.dtype.kind in ("iu" if layer is nn.Embedding else "f") and x.size
    out = module(gf.tensor(x))
    assert out.dtype is gf.float64 and gf.isfinite(out).all()
    assert all(parameter.dtype is gf.float64 for parameter in module.parameters())


@pytest.mark.parametrize("loss", loss_classes(), ids=lambda loss: loss.__name__)
@given(data=st.data())
def test_losses_take_their_pairs(loss: type[nn.Loss], data: st.DataObject) -> None:
    assert loss in layers_module.LOSSES, f"enter {loss.__name__} in gradflow/testing/layers.py"
    made = data.draw(losses(loss))
    assert type(made) is loss
    input, target = data.draw(batches(made))
    x = gf.tensor(input, requires_grad=True)
    out = made(x, gf.tensor(target))
    assert gf.isfinite(out).all() and (out.ndim == 0 or made.reduction == "none")
    out.sum().backward()
    assert x.grad is not None and gf.isfinite(x.grad).all()


def test_modules_and_losses_are_of_every_class_and_option() -> None:
    assert kinds(modules(), type, 250) == set(layers())
    assert kinds(losses(), type) == set(loss_classes())
    assert kinds(losses(nn.MSELoss), lambda loss: loss.reduction) == {"mean", "sum", "none"}
    options = kinds(losses(nn.CrossEntropyLoss), lambda loss: (loss.weight is None, loss.ignore_index == -100))
    assert options == {(a, b) for a in (True, False) for b in (True, False)}
    lengths = kinds(modules(nn.Sequential), len)
    assert lengths == {0, 1, 2, 3}
    assert kinds(modules(nn.Residual), lambda module: module.shortcut is None) == {True, False}


def test_drawing_a_module_leaves_the_random_stream_where_it_was() -> None:
    before = gf.random.default_generator().get_state()
    drawn(modules(nn.Linear), 5)
    assert gf.random.default_generator().get_state() == before


def test_a_module_depends_on_what_was_drawn_alone() -> None:
    def values() -> list[Any]:
        return [[p.tolist() for p in module.parameters()] for module in drawn(modules(nn.MLP), 20)]

    assert values() == values()


def test_unknown_modules_are_refused() -> None:
    class Mine(nn.Module):
        pass

    for strategy, decorator in ((modules(Mine), "constructs"), (losses(Mine), "constructs_loss")):  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match=f"@gradflow.testing.{decorator}\\(Mine\\)"):
            find(strategy, lambda module: True)
    with pytest.raises(ArgumentError, match="batches of a Mine that was not drawn"):
        batches(Mine())


def test_a_layer_that_is_entered_is_drawn() -> None:
    class Mine(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2

    constructs(Mine, min_dims=2, max_dims=2)(lambda draw, shape: Mine())
    try:
        for module in drawn(modules(Mine), 5):
            assert find(batches(module), lambda batch: True)[0].ndim == 2
    finally:
        del layers_module.MODULES[Mine]


# ---------------------------------------------------------------- calls of primitives, and the backend without kernels
def test_a_primitive_that_nobody_knows_how_to_call_is_named() -> None:
    @primitive("any", nondifferentiable=True)
    def with_a_setting(x: Any, /, *, setting: int) -> Any: ...

    try:
        assert not has_calls("with_a_setting")
        with pytest.raises(ArgumentError, match=r'@gradflow.testing.operands_of\("with_a_setting"\)'):
            find(calls("with_a_setting"), lambda call: True)
        operands_module.operands_of("with_a_setting")(lambda draw, rng: operands_module.Call((), {"setting": 1}))
        assert find(calls("with_a_setting"), lambda call: True).settings == {"setting": 1}
    finally:
        del REGISTRY["with_a_setting"], operands_module.OPERANDS["with_a_setting"]
        delattr(OPS, "with_a_setting")


@pytest.mark.parametrize("name", ["remainder", "power", "add", "clip"])
def test_calls_broadcast_either_way(name: str) -> None:
    ways = kinds(calls(name), lambda call: call.operands[0].ndim > call.operands[1].ndim)
    assert ways == {True, False}


def test_positions_with_a_derivative() -> None:
    three = (np.zeros(3), np.zeros(3), np.zeros(3))
    assert differentiable("index_update", three) == [0, 1]
    assert differentiable("concat", three) == [0, 1, 2]
    assert differentiable(REGISTRY["floor"], three[:1]) == []


def test_a_backend_without_kernels_composes_what_can_be_composed() -> None:
    numpy = resolve("numpy")
    plain = without_kernels("numpy")
    assert without_kernels(numpy) is plain and plain.name == "rules-only" and plain.device == numpy.device
    composed = {name for name, prim in REGISTRY.items() if prim.impl is not None}
    assert composed and not composed & plain.kernels.keys()
    assert plain.kernels.keys() == numpy.kernels.keys() - composed
    assert not plain.vjps and not plain.residual_kernels
    assert plain.versions() == numpy.versions() and plain.num_threads() == numpy.num_threads()
    plain.synchronize()
    x = gf.ones((2, 2), backend=plain)
    assert gf.softmax(x).backend is plain and gf.softmax(x).tolist() == [[0.5, 0.5], [0.5, 0.5]]


# ---------------------------------------------------------------- programs: data
@given(program=programs())
def test_a_programs_repr_is_the_program(program: Program) -> None:
    again = eval(repr(program), {"Program": Program, "Step": Step, "np": np})
    assert again == program and repr(again) == repr(program)


def test_programs_that_differ_are_not_equal() -> None:
    one = Program([[1.0, 2.0]], [Step("sum", (0,), {"axis": 0})])
    for other in (
        Program([[1.0, 3.0]], one.steps),
        Program([[[1.0, 2.0]]], one.steps),
        Program([[1.0, 2.0], 3.0], one.steps),
        Program([[1.0, 2.0]], [Step("sum", (0,), {"axis": -1})]),
        "a program",
    ):
        assert one != other
    assert one == Program([np.array([1.0, 2.0])], (Step("sum", (0,), {"axis": 0}),))


def test_a_program_wants_an_array_for_each_input() -> None:
    program = Program([1.0, 2.0], [Step("add", (0, 1))])
    with pytest.raises(ArgumentError, match="a program of 2 inputs was called with 1 arrays"):
        program(np, np.ones(2))


def test_steps_take_constants_sequences_arrays_and_dtypes() -> None:
    values = [np.array([1.0, 2.0]), np.array([3.0])]
    for step, expected in (
        (Step("multiply", (2.0, 0)), [2.0, 4.0]),
        (Step("concat", ([0, 1],), {"axis": 0}), [1.0, 2.0, 3.0]),
        (Step("take", (0, (1, 1, 0)), {"axis": 0}), [2.0, 2.0, 1.0]),
        (Step("clip", (0, 1.25, 1.5)), [1.25, 1.5]),
        (Step("getitem", (0,), {"key": ([True, False], None)}), [[1.0]]),
        (Step("setitem", (0, 1), {"key": (slice(None, None, -1),)}), [3.0, 3.0]),
    ):
        assert step.run(np, values).tolist() == expected
        assert step.run(gf, [gf.tensor(v) for v in values]).tolist() == expected
    assert Step("astype", (0, "float32")).run(gf, [gf.tensor(v) for v in values]).dtype is gf.float32
    assert values[0].tolist() == [1.0, 2.0]


# ---------------------------------------------------------------- programs: what is drawn
@given(program=programs())
def test_programs_are_finite_moderate_and_deterministic(program: Program) -> None:
    values = list(map(gf.tensor, program.inputs))
    for step in program.steps:
        values.append(step.run(gf, values))
        assert gf.isfinite(values[-1]).all() and values[-1].size
        if values[-1].dtype is gf.float64:
            assert (gf.abs(values[-1]) <= LARGEST).all()
    assert values[-1].dtype is gf.float64
    again = program(gf, *map(gf.tensor, program.inputs))
    np.testing.assert_array_equal(again.numpy(), values[-1].numpy())


def numeric_slope(f: Callable[[float], float], step: float = 1e-5) -> float:
    coarse, fine = ((f(h) - f(-h)) / (2 * h) for h in (step, step / 2))
    return (4 * fine - coarse) / 3


@given(program=programs(max_steps=12), rng=generators)
def test_programs_are_smooth_where_they_are(program: Program, rng: np.random.Generator) -> None:
    """Finite differences, which a kink or a pole nearby would spoil, agree with the gradient."""
    steps = [direction(rng, x.shape) for x in program.inputs]
    out, pull = gf.vjp(partial(program, gf), *map(gf.tensor, program.inputs))
    cotangent = direction(rng, out.shape)
    slope = sum(float(np.sum(g.numpy() * v)) for g, v in zip(pull(gf.tensor(cotangent)), steps, strict=True))

    def along(h: float) -> float:
        moved = program(gf, *(gf.tensor(x + h * v) for x, v in zip(program.inputs, steps, strict=True)))
        return float(np.sum(moved.numpy() * cotangent))

    sizes = [float(np.sum(np.abs(g.numpy()))) for g in pull(gf.tensor(cotangent))]
    np.testing.assert_allclose(slope, numeric_slope(along), rtol=1e-5, atol=1e-6 * (1 + sum(sizes)))


def test_programs_are_of_any_length_and_shape() -> None:
    found = drawn(programs(), 200)
    lengths = Counter(len(program.steps) for program in found)
    assert set(range(1, 9)) <= lengths.keys()
    assert {1, 2, 3} <= {len(program.inputs) for program in found}
    results = [program(gf, *program.inputs) for program in found]
    assert {0, 1, 2, 3} <= {out.ndim for out in results}
    read = [Counter(at for step in p.steps for at in step.operands if isinstance(at, int)) for p in found]
    assert any(max(counts.values(), default=0) > 1 for counts in read), "no value is used several times"
    assert kinds(programs(scalar=True), lambda p: p(gf, *p.inputs).ndim) == {0}


def test_programs_use_every_instruction() -> None:
    """In the steps' names, whose own instructions are few."""
    found = {step.function for program in drawn(programs(), 400) for step in program.steps}
    assert INSTRUCTIONS.keys() <= found


def test_programs_of_some_instructions_use_no_others() -> None:
    found = {step.function for program in drawn(programs(instructions=["exp", "add"]), 100) for step in program.steps}
    assert {"exp", "add"} <= found <= {"exp", "add", "mean", "positive"}


def primitives_of(program: Program) -> set[str]:
    """The primitives that a program, its derivative and the derivative of that run."""

    def scalar(*x: Any) -> Any:
        return program(gf, *x).sum()

    def slope(*x: Any) -> Any:
        return sum(g.sum() for g in gf.grad(scalar, tuple(range(len(x))))(*x))

    _, recorded = trace(gf.grad(slope), *map(gf.tensor, program.inputs))
    return {equation.primitive.name for equation in recorded.equations}


def test_every_differentiable_primitive_is_reached_by_some_instruction() -> None:
    reached: set[str] = set()
    for name in INSTRUCTIONS:
        for program in drawn(programs(instructions=[name], max_steps=2), 25):
            reached |= primitives_of(program)
    wanted = {name for name, prim in REGISTRY.items() if any(prim.rules)}
    assert wanted <= reached, f"enter instructions in gradflow/testing/instructions.py for {sorted(wanted - reached)}"


def test_an_instruction_that_does_not_fit_leaves_nothing_behind() -> None:
    @instruction("half done")
    def half_done(b: Builder) -> None:
        b.emit("negative", b.input((2,)))
        raise UnfitError

    try:
        for program in drawn(programs(instructions=["half done"]), 10):
            assert {step.function for step in program.steps} <= {"positive", "mean", "add"}
    finally:
        del INSTRUCTIONS["half done"]


def test_programs_shrink_to_one_step() -> None:
    def has_tanh(program: Program) -> bool:
        return any(step.function == "tanh" for step in program.steps)

    found = [find(programs(), has_tanh, random=Random(seed)) for seed in range(3)]
    assert [[step.function for step in program.steps] for program in found] == [["tanh"]] * 3
    shapes = [[x.shape for x in program.inputs] for program in found]
    assert all(len(shape) == 1 for shape in shapes)
    assert [(3,)] in shapes  # the simplest of all; now and then a scalar is where shrinking ends
