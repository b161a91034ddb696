"""The compiler's passes: with each of them and without, for one task and for several, a plan means what was traced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

import gradflow as gf
from gradflow.compiler import races
from gradflow.compiler.build import Switches, plan_of
from gradflow.compiler.fuse import fused, stages
from gradflow.compiler.generator import CodeGenerator
from gradflow.compiler.lower import Lowering, UnsupportedError, lower
from gradflow.compiler.orient import oriented
from gradflow.compiler.trace import trace
from gradflow.primitive import namespace
from gradflow.testing import programs
from gradflow.transforms import vjp
from gradflow_numpy.compiled import Generator, StraightLine
from tests.plan_interpreter import Interpreter


class Fusing(CodeGenerator):
    """Plans as a compiler of loops wants them."""

    fuses = opens_updates = True
    items = frozenset({"gemm", "batch_gemm", "gather", "scatter", "uniform", "strided_copy"})

    def tasks(self, graph: Any) -> int:
        return 1

    def generate(self, plan: Any, namespace: Any) -> Any:
        raise NotImplementedError


SWITCHES = [
    Switches(),
    Switches(share=False),
    Switches(thin=0),
    Switches(orient=False),
    Switches(fuse=False),
    Switches(reuse=False),
]


def with_gradient(program: Any) -> Any:
    """The program and its gradient, as one function of tensors."""

    def both(*xs: gf.Tensor) -> tuple[gf.Tensor, ...]:
        (out,), pullback = vjp(lambda *a: (program(gf, *a),), *xs)
        return (out, *pullback((out * 0.5 + 1.0,)))

    return both


def recorded(program: Any, dtype: Any = np.float64) -> tuple[Any, list[np.ndarray]]:
    arrays = [np.asarray(x, dtype) for x in program.inputs]
    _, found = trace(with_gradient(program), *[gf.tensor(x * 0.875) for x in arrays])
    return found, arrays


def expected(found: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    return [np.array(t) for t in found.replay(*map(gf.tensor, arrays))]


def planned(found: Any, *how: Any) -> Any:
    """The plan of a trace; what a mask selects has no shape that is known, and has no plan."""
    try:
        return plan_of(found, namespace(), *how)
    except UnsupportedError as error:
        assert "nonzero_index" in str(error)  # noqa: PT017
        reject()


def same(got: Any, want: Any, rtol: float) -> None:
    for g, w in zip(got, want, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        scale = max(1.0, float(np.max(np.abs(w[np.isfinite(w)]), initial=0)))
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * scale)


@given(program=programs(max_steps=10))
def test_straight_line_numpy_computes_what_was_traced(program: Any) -> None:
    found, arrays = recorded(program)
    plan = planned(found, Generator())
    got = StraightLine(plan, namespace()).run(arrays)
    same(got, expected(found, arrays), 1e-11)


@given(
    program=programs(max_steps=10), tasks=st.integers(1, 3), switches=st.sampled_from(SWITCHES), seed=st.integers(0, 9)
)
def test_a_plan_means_what_was_traced(program: Any, tasks: int, switches: Switches, seed: int) -> None:
    found, arrays = recorded(program)
    plan = planned(found, Fusing(), tasks, switches)
    got = Interpreter(plan, namespace(), np.random.default_rng(seed)).run(arrays)
    same(got, expected(found, arrays), 1e-11)


# --------------------------------------------------------------------------------------- what each pass does, by itself
def lowered(f: Any, *shapes: tuple[int, ...], **settings: Any) -> Any:
    rng = np.random.default_rng(0)
    _, found = trace(f, *[gf.tensor(rng.normal(size=s)) for s in shapes])
    found.created = {v for v, array in found.bound.items() if array.size == 1}  # type: ignore[attr-defined]
    return lower(found, namespace(), items=Fusing.items, **settings)


def ops(graph: Any) -> list[str]:
    return [node.op for node in graph.nodes]


def test_what_nobody_reads_is_not_computed() -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        gf.exp(x)
        return gf.tanh(x)

    assert ops(lowered(f, (3,))) == ["tanh"]


def test_equal_expressions_are_computed_once() -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        return gf.exp(x * 2) + gf.exp(x * 2)

    assert sorted(ops(lowered(f, (3,)))) == ["add", "exp", "multiply"]
    assert ops(lowered(f, (3,), share=False)).count("exp") == 2


def test_numbers_are_folded_and_neutral_ones_vanish() -> None:
    assert ops(lowered(lambda x: gf.broadcast_to(x, (3,)) * 1, (3,))) == ["copy"]  # a result has memory of its own
    graph = lowered(lambda x: gf.square(x) / 4, (3,))
    assert ops(graph) == ["multiply", "multiply"]
    assert graph.nodes[-1].operands[1].value.source == 0.25


@pytest.mark.parametrize("dtype", ["uint8", "uint32", "uint64", "int8"])
@pytest.mark.parametrize("ignore_index", [-100, 2, 300])
def test_labels_of_any_integer_dtype_meet_an_ignore_index_that_it_cannot_hold(dtype: str, ignore_index: int) -> None:
    logits, labels = gf.tensor(np.arange(12.0).reshape(4, 3) % 5), gf.tensor(np.array([0, 2, 1, 2]).astype(dtype))

    def step(logits: Any, labels: Any) -> Any:
        return vjp(lambda x: gf.cross_entropy(x, labels, ignore_index=ignore_index), logits)[1](gf.tensor(1.0))

    _, found = trace(step, logits, labels)
    arrays = [logits.numpy(), labels.numpy()]
    got = Interpreter(planned(found, Fusing()), namespace(), np.random.default_rng(0)).run(arrays)
    same(got, expected(found, arrays), 1e-12)


@pytest.mark.parametrize("number", [-1, 256])
@pytest.mark.parametrize("name", ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"])
def test_a_comparison_with_a_number_beyond_the_dtype_is_known(name: str, number: int) -> None:
    x = np.array([0, 255, 7], np.uint8)
    for operands, wanted in (((x, number), getattr(np, name)(x, number)), ((number, x), getattr(np, name)(number, x))):
        made = Lowering(namespace("numpy"))
        out = made.elementwise(name, *(made.constant(o) if o is x else o for o in operands))
        assert out.is_number and out.shape == (3,) and (out.value.source == wanted).all()


def test_views_are_no_nodes() -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        return gf.tanh(gf.reshape(gf.permute_dims(x, (1, 0))[1:, ::2].mT, (-1,)).reshape((2, 3)).mT)

    assert ops(lowered(f, (4, 4))) == ["copy", "tanh", "copy"]  # a reshape of a cut matrix, and a turned result
    assert ops(lowered(lambda x: gf.tanh(x.mT.mT[1:]), (4, 4))) == ["tanh"]


def test_a_broadcast_sinks_below_the_operations_on_it() -> None:
    graph = lowered(lambda x, b: x + gf.exp(gf.broadcast_to(b, (5, 3))), (5, 3), (3,))
    assert [(n.op, n.space) for n in graph.nodes] == [("exp", (1, 3)), ("add", (5, 3))]


def test_thin_products_are_sums_of_products() -> None:
    assert "gemm" not in ops(lowered(lambda x, y: x @ y, (5, 2), (2, 7)))
    assert ops(lowered(lambda x, y: x @ y, (5, 2), (2, 7), thin=0)) == ["gemm"]
    assert ops(lowered(lambda x, y: x @ y, (8, 9), (9, 7))) == ["gemm"]


def test_what_has_no_node_is_a_call() -> None:
    (call, _) = lowered(lambda x: gf.astype(gf.argmax(x, axis=1), gf.float64), (3, 4)).nodes
    assert (call.op, call.settings[0]) == ("call", "argmax")


def test_vectors_of_a_batch_become_columns() -> None:
    graph = oriented(lowered(lambda x, t: gf.sum(x * gf.reshape(gf.exp(t), (5, 1))), (5, 3), (5,)))
    assert next(n.space for n in graph.nodes if n.op == "exp") == (5, 1)


def test_a_matrix_is_computed_as_it_is_read() -> None:
    graph = oriented(lowered(lambda x, y, z: (x @ y).mT * z, (5, 9), (9, 7), (7, 5)))
    (gemm,) = [n for n in graph.nodes if n.op == "gemm"]
    assert gemm.out.home == (7, 5)


def test_a_softmax_is_one_group_of_several_loops() -> None:
    (group,) = fused(oriented(lowered(lambda x: gf.softmax(x, axis=1), (5, 3))))
    assert set(stages(group).values()) == {0, 1, 2}
    assert len(fused(lowered(lambda x: gf.softmax(x, axis=1), (5, 3)), enabled=False)) > 3


def test_groups_do_not_merge_around_a_third() -> None:
    def f(x: gf.Tensor) -> gf.Tensor:
        y = gf.exp(x)
        return y + gf.sum(y, axis=0, keepdims=True)  # the sum ends the loop: what reads it and y waits

    groups = fused(oriented(lowered(f, (5, 3))))
    assert [[n.op for n in g.nodes] for g in groups] == [["exp", "col_sum"], ["add"]]


def training(tasks: int, **switches: Any) -> Any:
    """The plan of a training step, and its trace."""
    gf.manual_seed(0)
    model = gf.nn.MLP([20, 16, 12, 5], gf.nn.ReLU)
    optimizer = gf.optim.Adam(model.parameters())

    def step(x: gf.Tensor, t: gf.Tensor) -> gf.Tensor:
        loss = gf.cross_entropy(model(x), t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    arguments = gf.random.normal((24, 20)), gf.tensor(np.arange(24) % 5)
    step(*arguments)
    _, found = trace(step, *arguments)
    return plan_of(found, namespace(), Fusing(), tasks, Switches(**switches)), found, arguments, model


def test_a_training_step_has_regions_of_batch_rows_and_of_weight_rows() -> None:
    plan, *_ = training(2)
    rows = [{g.rows for g in region.groups} - {1} for region in plan.regions]
    assert len(rows) <= 4
    assert 24 in rows[0]
    assert rows[-1] <= {20, 16, 12}
    assert not plan.copied  # every parameter and moment is written where it lies


def test_nothing_is_stored_before_the_checks() -> None:
    plan, *_ = training(2)
    groups = [g for region in plan.regions for g in region.all()]
    check = next(i for i, g in enumerate(groups) if g.nodes[0].op == "check")
    stored = {store.value for store in plan.graph.stores}
    assert all(i > check for i, g in enumerate(groups) if any(n.out in stored for n in g.nodes))


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_memory_is_used_again(tasks: int) -> None:
    plan, *_ = training(tasks)
    assert plan.arena < plan.unshared
    assert training(tasks, reuse=False)[0].arena >= plan.arena


@pytest.mark.parametrize("tasks", [1, 2, 3])
@pytest.mark.parametrize("switches", SWITCHES)
def test_a_training_step_is_what_was_traced(tasks: int, switches: Switches) -> None:
    plan, found, (x, t), _ = training(tasks, **switches._asdict())
    before = [array.copy() for array in found.bound.values()]
    got = Interpreter(plan, namespace(), np.random.default_rng(tasks)).run([x.numpy(), t.numpy()])
    after = [array.copy() for array in found.bound.values()]
    for array, values in zip(found.bound.values(), before, strict=True):
        if array.flags.writeable:
            array[...] = values
    want = found.replay(x, t)
    same(got, [np.array(w) for w in want], 1e-5)
    same(after, [np.array(a) for a in found.bound.values()], 2e-5)


def test_the_race_check_finds_groups_that_need_a_barrier() -> None:
    plan, *_ = training(2)
    races.check(plan)
    plan.regions[-2].groups += plan.regions[-1].groups  # a weight's gradient reads all rows of the batch
    with pytest.raises(races.RaceError, match="region"):
        races.check(plan)


def test_the_race_check_finds_memory_used_twice() -> None:
    plan, *_ = training(2)
    region = next(r for r in plan.regions if sum(g.nodes[0].op == "gemm" for g in r.groups) > 1)
    first, second = [g.nodes[0].out for g in region.groups if g.nodes[0].op == "gemm"][:2]
    plan.places[second] = plan.places[first]
    with pytest.raises(races.RaceError, match="writes bytes"):
        races.check(plan)
