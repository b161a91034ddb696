"""Runs any plan in plain Python, row by row, with tasks taking turns at random: the meaning of a plan, for tests.

It knows nothing of how kernels are generated. What a loop reads is read before what it writes, row by row, as the plan
promises; tasks of a region go on in any order, group by group, so a race shows as a wrong number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradflow.compiler.fuse import Group, stages
from gradflow.compiler.graph import COLUMN_REDUCTIONS, REDUCTIONS, ROW_REDUCTIONS, Node, Value, View
from gradflow.compiler.memory import Place, Plan
from gradflow_numpy.compiled import _UFUNCS, _memory

_REDUCE: dict[str, Any] = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class Interpreter:
    """One plan and its memory; everything that is not written yet holds NaN, or a large integer."""

    def __init__(self, plan: Plan, namespace: Any, rng: np.random.Generator) -> None:
        self.plan, self.namespace, self.rng = plan, namespace, rng
        self.arena = np.full(plan.arena, 0xFF, np.uint8)
        self.combined: set[Any] = set()

    def run(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        self.arguments = [np.ascontiguousarray(a) for a in arrays]
        self.results = [np.empty(shape, value.dtype) for value, shape in self.plan.graph.results]
        self.combined = set()
        for region in self.plan.regions:
            for group in region.first:
                self.finish_reductions(group)
                for task in range(self.plan.tasks) if group.rows > 1 else [self.plan.tasks - 1]:
                    self.run_group(group, task)
            for group in region.groups:
                self.finish_reductions(group)
            self.side_by_side(region.groups)
        for value in self.plan.partial.keys() - self.combined:
            self.finish(value)
        for store in self.plan.copied:
            value = store.value
            target = Place("memory", store.memory.source, store.start * value.dtype.itemsize)
            self.elements(target, value.dtype, value.size)[:] = self.elements(
                self.plan.places[value], value.dtype, value.size
            )
        return tuple(self.results)

    def side_by_side(self, groups: list[Group]) -> None:
        at = [0] * self.plan.tasks
        while any(i < len(groups) for i in at):
            task = int(self.rng.choice([t for t, i in enumerate(at) if i < len(groups)]))
            self.run_group(groups[at[task]], task)
            at[task] += 1

    def finish_reductions(self, group: Group) -> None:
        for view, _ in group.reads():
            if view.value in self.plan.partial and view.value not in self.combined:
                self.finish(view.value)

    def finish(self, value: Value) -> None:
        """Bring the tasks' parts of a reduction together."""
        self.combined.add(value)
        assert value.node is not None
        strip = self.plan.partial[value]
        reduce = _REDUCE[value.node.op.rpartition("_")[2]]
        parts = [
            self.elements(Place("arena", None, strip.offset + t * strip.step), value.dtype, value.size)
            for t in range(self.plan.tasks)
        ]
        self.elements(self.plan.places[value], value.dtype, value.size)[:] = reduce.reduce(parts, axis=0)

    # ------------------------------------------------------------ memory
    def elements(self, place: Place, dtype: Any, size: int) -> np.ndarray:
        first = place.offset // dtype.itemsize
        if place.kind == "arena":
            return self.arena[place.offset : place.offset + size * dtype.itemsize].view(dtype)
        if place.kind == "memory":
            return _memory(place, dtype, size)
        source = {"argument": self.arguments, "result": self.results}.get(place.kind)
        array = place.source if source is None else source[place.source]
        return array.reshape(-1)[first : first + size]

    def strided(self, view: View, strides: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        value = view.value
        if value.kind == "number":
            return np.full(shape, value.source, value.dtype)
        reach = [(n - 1) * t for n, t in zip(shape, strides, strict=True)]
        low, high = sum(min(r, 0) for r in reach), sum(max(r, 0) for r in reach) + 1
        flat = self.elements(self.plan.place(view._replace(offset=view.offset + low)), value.dtype, high - low)
        steps = [t * value.dtype.itemsize for t in strides]
        return np.lib.stride_tricks.as_strided(flat[-low:], shape, steps)

    def read(self, view: View) -> np.ndarray:
        return self.strided(view, (view.row, view.column), view.space)

    def out(self, node: Node) -> np.ndarray:
        return self.elements(self.plan.places[node.out], node.out.dtype, node.out.size).reshape(node.out.home)

    # ------------------------------------------------------------ groups
    def run_group(self, group: Group, task: int) -> None:
        node = group.nodes[0]
        lo, hi = group.rows * task // self.plan.tasks, group.rows * (task + 1) // self.plan.tasks
        if node.op in ("pack", "check"):
            return
        if node.op == "call":
            if task == 0:
                self.call(node)
        elif node.op == "gemm":
            a, b = map(self.read, node.operands)
            self.out(node)[lo:hi] = a[lo:hi] @ b
        elif node.op == "transpose":
            self.out(node)[lo:hi] = self.read(node.operands[0])[lo:hi]
        elif node.op == "gather":
            table, index = map(self.read, node.operands)
            self.out(node)[lo:hi] = table[np.clip(index[lo:hi, 0], 0, node.settings - 1)]
        elif node.op == "scatter":
            rows, index = map(self.read, node.operands)
            mine = (index[:, 0] >= lo) & (index[:, 0] < hi)
            self.out(node)[lo:hi] = 0
            np.add.at(self.out(node), index[mine, 0], rows[mine])
        elif node.op == "batch_gemm":
            self.batch_gemm(node, lo, hi)
        elif node.op == "uniform":
            self.out(node)[lo:hi] = self.draw(node)[lo:hi]
        elif node.op == "strided_copy":
            if hi > lo:
                lengths, strides = node.settings
                self.out(node).reshape(lengths)[...] = self.strided(node.operands[0], strides, lengths)
        else:
            self.loop(group, task, lo, hi)

    def batch_gemm(self, node: Node, lo: int, hi: int) -> None:
        count, rows, inner, columns, *steps = node.settings
        shapes = (count, rows, inner), (count, inner, columns)
        a, b = (self.strided(v, t, n) for v, t, n in zip(node.operands, steps, shapes, strict=True))
        self.out(node)[lo:hi] = (a[lo:hi] @ b[lo:hi]).reshape(hi - lo, rows * columns)

    def draw(self, node: Node) -> np.ndarray:
        state = self.read(node.operands[0]).reshape(2).copy()
        found: np.ndarray = self.namespace.random_uniform(state, shape=node.space, dtype=node.out.dtype)
        return found

    def call(self, node: Node) -> None:
        name, settings, geometry, shape = node.settings
        operands = [self.strided(v, *g) for v, g in zip(node.operands, geometry, strict=True)]
        found = getattr(self.namespace, name)(*operands, **settings)
        if shape is not None:
            self.out(node).reshape(shape)[...] = found

    def loop(self, group: Group, task: int, lo: int, hi: int) -> None:
        stage = stages(group)
        inside = set(group.nodes)
        sums = {n: np.full(n.out.size, self.first(n), n.out.dtype) for n in group.nodes if n.op in COLUMN_REDUCTIONS}
        for r in range(lo, hi):
            values: dict[Node, Any] = {}
            for s in range(max(stage.values()) + 1):
                now = [n for n in group.nodes if stage[n] == s]
                outside = {
                    (n, i): self.read(v)[r].copy()
                    for n in now
                    for i, v in enumerate(n.operands)
                    if v.value.node not in inside
                }
                for n in now:
                    operands = [
                        outside[n, i] if (n, i) in outside else values[v.value.node] for i, v in enumerate(n.operands)
                    ]
                    values[n] = self.compute(n, operands)
                for n in now:
                    if n.op in COLUMN_REDUCTIONS:
                        sums[n] = _REDUCE[n.op[4:]](sums[n], values[n])
                    elif n.out in self.plan.places:
                        self.out(n)[r] = values[n]
        for n, total in sums.items():
            strip = self.plan.partial.get(n.out)
            if strip is not None:
                place = Place("arena", None, strip.offset + task * strip.step)
                self.elements(place, n.out.dtype, n.out.size)[:] = total
            elif hi > lo:
                self.out(n).reshape(-1)[:] = total

    def first(self, node: Node) -> Any:
        how = node.op[4:]
        if how == "sum":
            return 0
        if node.out.dtype.kind == "f":
            return -np.inf if how == "max" else np.inf
        limits = np.iinfo(node.out.dtype)
        return limits.min if how == "max" else limits.max

    def compute(self, node: Node, operands: list[Any]) -> Any:
        if node.op in ROW_REDUCTIONS:
            return _REDUCE[node.op[4:]].reduce(np.broadcast_to(operands[0], node.space[1:]))[None]
        if node.op in REDUCTIONS:
            return np.broadcast_to(operands[0], node.space[1:])
        with np.errstate(all="ignore"):
            if node.op in ("copy", "cast"):
                return operands[0].astype(node.out.dtype)
            if node.op == "where":
                return np.where(*operands)
            if node.op in _UFUNCS:
                return _UFUNCS[node.op](*operands)
            return getattr(self.namespace, node.op)(*operands)
