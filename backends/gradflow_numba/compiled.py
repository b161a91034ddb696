"""From a plan to a native program: a table of kernels with their sizes and addresses, and one call that walks it."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np

from gradflow.compiler.fuse import Group
from gradflow.compiler.generator import SMALL_FACTOR, CodeGenerator, Executable, Timed
from gradflow.compiler.graph import Graph, Node, Store, Value, View
from gradflow.compiler.memory import ALIGNMENT, Place, Plan
from gradflow.compiler.regions import Region
from gradflow_numba import blas, threads
from gradflow_numba.emit import WIDTH, Cell, kernel_of
from gradflow_numba.fixed import body, combine_text, fixed
from gradflow_numba.kernels_on_disk import compiled, source_of
from gradflow_numba.product import product_text, shape
from gradflow_numpy.blas import blas_threads, set_blas_threads
from gradflow_numpy.pool import trim

Array = Any
Row = list[Any]

ONE = np.ones(1, np.int64)
PAYS = 20_000  # elements and a tenth of the floating-point operations of products: about 20 µs of work for one thread


@functools.cache
def _data_field() -> int:
    """Where an array object holds the address of its data, in bytes; −1 where that is not known."""
    probe = np.empty(1)
    field = object.__basicsize__
    found = ctypes.c_void_p.from_address(id(probe) + field).value
    return field if found == probe.ctypes.data else -1


_ARRAYS_TELL = _data_field() >= 0
empty = np.empty


@functools.cache
def _driver(parallel: bool) -> Callable[[int], int]:
    """The compiled driver without Numba's dispatcher before it: 0.2 µs a call."""
    if parallel:
        from gradflow_numba.drive_parallel import drive
    else:
        from gradflow_numba.drive_serial import drive
    compiled_: Any = next(iter(drive.overloads.values()))
    entry: Callable[[int], int] = compiled_.entry_point
    return entry


def _parallel_driver(address: int) -> int:
    """Run in several threads; the driver is loaded, or compiled, when that is first tried."""
    return _driver(True)(address)


class Item:
    """A row of the table, and what it is for."""

    __slots__ = ("nbytes", "operations", "row", "text", "what")

    def __init__(self, what: str, function: Any, row: Row, text: str, operations: int = 0, nbytes: int = 0) -> None:
        self.what, self.row, self.text = what, [function.address, *row], text
        self.operations, self.nbytes = operations, nbytes


class Part:
    """Regions that run in one native call."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.regions: list[tuple[int, int, int, int, int]] = []

    def add(self, alone: list[Item], split: list[Item], work: int) -> None:
        first = len(self.items)
        self.items += alone
        middle = len(self.items)
        self.items += split
        self.regions.append((first, middle, middle, len(self.items), int(work > PAYS and len(split) > 0)))


@final
class Native(Executable):
    """A program of native parts, and calls of kernels between them.

    Args:
        plan: what to do, and where everything lies.
        namespace: the kernels for calls.
    """

    def __init__(self, plan: Plan, namespace: Any) -> None:
        self.plan, self.namespace = plan, namespace
        memory = np.zeros(plan.arena + 2 * ALIGNMENT, np.uint8)
        start = -memory.ctypes.data % ALIGNMENT
        self._arena = memory[start:]
        self._failed = np.zeros(1, np.int64)
        self._results = [(shape, value.dtype) for value, shape in plan.graph.results]
        self._inputs, self._tasks = plan.graph.arguments, plan.tasks
        self._arrays = np.zeros(max(1, self._inputs + len(self._results)), np.int64)
        self._words: Any = memoryview(self._arrays)  # type: ignore[arg-type]
        self._steps: list[Callable[[Sequence[Array]], int]] = []
        self._parts: list[Part] = []
        self._rows: list[tuple[Item, int]] = []
        self._kept: list[Any] = [memory]
        self._combined: set[Value] = set()
        self._build()
        self._written = [self._stored(store) for store in plan.graph.stores]
        del self.plan, self._combined  # what is left is what runs

    # ------------------------------------------------------------ running
    def run(self, arrays: Sequence[Array]) -> tuple[Array, ...] | None:
        """Run it; None where a check has failed."""
        out = tuple([empty(shape, dtype) for shape, dtype in self._results])
        words = self._words
        i = 0
        for array in arrays:  # by hand: of a step of 3 µs, `enumerate` over both would take 0.2
            words[i] = id(array)
            i += 1
        for array in out:
            words[i] = id(array)
            i += 1
        if not _ARRAYS_TELL:
            self._arrays[:] = [a.ctypes.data for a in (*arrays, *out)]
        for step in self._steps:
            if step(arrays):
                return None
        return out

    def _native_step(self, header: np.ndarray, pays: bool) -> Callable[[Sequence[Array]], int]:
        """The call of a native part: in one thread, or in several where that turns out to be faster."""
        address = header.ctypes.data
        serial = _driver(False)
        if not pays:
            return lambda arrays, serial=serial, address=address: serial(address)  # type: ignore[misc]
        either = threads.Adaptive(serial, _parallel_driver)
        return lambda arrays: int(either(address))

    # ------------------------------------------------------------ building
    def _build(self) -> None:
        part = Part()
        products = [g.nodes[0] for r in self.plan.regions for g in r.groups if g.nodes[0].op in ("gemm", "batch_gemm")]
        uses_blas = not all(_is_ours(node) for node in products)
        if uses_blas:
            part.add([self._blas_item(ONE)], [], 0)
        for region in self.plan.regions:
            if region.is_call:
                if ends := self._combine_items(region):
                    part.add(ends, [], 0)
                self._close(part)
                part = Part()
                self._steps.append(self._call_step(region.groups[0].nodes[0]))
                continue
            alone = [*self._combine_items(region)]
            for group in region.first:
                alone += self._combine_items(Region([], [group])) + self._items(group)
            split = [item for group in region.groups for item in self._items(group)]
            part.add(alone, split, sum(_work(g) for g in region.groups))
        copies = [self._combine_item(value) for value in self.plan.partial if value not in self._combined]
        copies += [self._copy_item(store) for store in self.plan.copied]
        ends = [self._blas_item(blas.THREADS)] if uses_blas else []
        if copies or ends:
            part.add(copies + ends, [], 0)
        self._close(part)

    def _close(self, part: Part) -> None:
        if not part.items:
            return
        table = np.zeros((len(part.items), WIDTH), np.int64)
        patches: list[tuple[int, int, int]] = []
        for i, item in enumerate(part.items):
            for j, word in enumerate(item.row):
                if not isinstance(word, Cell):
                    table[i, j] = word
                    continue
                address, which = self._address(word.place)
                table[i, j] = address
                if which is not None:
                    patches.append((table.ctypes.data + (i * WIDTH + j) * 8, which, address))
        regions = np.array([(*region, 0) for region in part.regions], np.int64)
        patch = np.array(patches or [(0, 0, 0)], np.int64)
        header = np.array(
            [
                table.ctypes.data, regions.ctypes.data, len(regions), patch.ctypes.data, len(patches),
                self._arrays.ctypes.data, _data_field(), self._failed.ctypes.data, self.plan.tasks,
            ],
            np.int64,
        )  # fmt: skip
        self._kept += [table, regions, patch, header]
        for item in part.items:
            item.row = []
        self._rows += [(item, table.ctypes.data + i * WIDTH * 8) for i, item in enumerate(part.items)]
        self._parts.append(part)
        self._steps.append(self._native_step(header, any(region[4] for region in part.regions)))

    def _address(self, place: Place) -> tuple[int, int | None]:
        """An address; for what is known only at a call, the offset, and which array of the call it is in."""
        if place.kind == "arena":
            return self._arena.ctypes.data + place.offset, None
        if place.kind == "memory":
            low, owner = place.source
            self._kept.append(owner)
            return low + place.offset, None
        if place.kind == "constant":
            self._kept.append(place.source)
            return place.source.ctypes.data + place.offset, None
        return place.offset, place.source + (self._inputs if place.kind == "result" else 0)

    def _items(self, group: Group) -> list[Item]:
        node = group.nodes[0]
        if node.op == "pack" or 0 in group.space:
            return []
        if node.op == "gemm":
            return [self._gemm_item(node)]
        if node.op == "transpose":
            (matrix,) = node.operands
            row = [*node.out.home, Cell(self.plan.place(matrix)), matrix.column, Cell(self.plan.places[node.out])]
            return [Item("transpose", fixed(f"transpose {node.out.dtype}"), row, "", 0, 2 * node.out.nbytes)]
        if node.op == "check":
            (wrong,) = node.operands
            return [Item("check", fixed("check"), [Cell(self.plan.place(wrong)), self._failed.ctypes.data], "")]
        if node.op in _WORDS:
            text = body(node.op, node.out.dtype)
            return [Item(node.op, compiled(text), _WORDS[node.op](self.plan, node), text, 0, 2 * node.out.nbytes)]
        kernel = kernel_of(group, self.plan)
        size = group.space[0] * group.space[1]
        reads = {(v.value, v.offset): v.value.dtype.itemsize for v, _ in group.reads() if v.row and v.column}
        writes = [n.out.dtype.itemsize for n in group.nodes if n.out in self.plan.places and n.out.size == size]
        nbytes = size * (sum(reads.values()) + sum(writes))
        what = "+".join(n.op for n in group.nodes)
        return [Item(what, compiled(kernel.text), kernel.row, kernel.text, size * len(group.nodes), nbytes)]

    def _gemm_item(self, node: Node) -> Item:
        a, b = node.operands
        (rows, columns), inner = node.space, a.space[1]
        row = [rows, columns, inner, Cell(self.plan.place(a)), *_step(a), Cell(self.plan.place(b)), *_step(b)]
        row.append(Cell(self.plan.places[node.out]))
        nbytes = (rows * inner + inner * columns + rows * columns) * node.out.dtype.itemsize
        operations = 2 * rows * columns * inner
        if _is_ours(node):
            text = product_text(node.out.dtype)
            return Item("gemm", compiled(text), row, text, operations, nbytes)
        return Item("gemm", fixed(f"gemm {node.out.dtype}"), row, "", operations, nbytes)

    def _combine_items(self, region: Region) -> list[Item]:
        """The ends of reductions that this region is the first to read."""
        items = []
        for group in [*region.first, *region.groups]:
            for view, _ in group.reads():
                value = view.value
                if value in self.plan.partial and value not in self._combined:
                    if group in region.first and value.node in [n for g in region.first for n in g.nodes]:
                        continue
                    self._combined.add(value)
                    items.append(self._combine_item(value))
        return items

    def _combine_item(self, value: Value) -> Item:
        assert value.node is not None
        strip = self.plan.partial[value]
        how = value.node.op.rpartition("_")[2]
        text = combine_text(value.dtype.name, how, value.dtype)
        source = Cell(Place("arena", None, strip.offset))
        row = [value.size, self.plan.tasks, source, strip.step // value.dtype.itemsize, Cell(self.plan.places[value])]
        return Item(f"end of {value.node.op}", compiled(text), row, text)

    def _copy_item(self, store: Store) -> Item:
        value = store.value
        target = Place("memory", store.memory.source, store.start * value.dtype.itemsize)
        row = [value.nbytes, Cell(self.plan.places[value]), Cell(target)]
        return Item("copy", fixed("copy"), row, "", 0, 2 * value.nbytes)

    def _blas_item(self, number: np.ndarray) -> Item:
        return Item("blas threads", fixed("blas threads"), [number.ctypes.data], "")

    # ------------------------------------------------------------ calls
    def _call_step(self, node: Node) -> Callable[[Sequence[Array]], int]:
        name, settings, geometry, shape = node.settings
        kernel = getattr(self.namespace, name)
        readers = [self._reader(v, *g) for v, g in zip(node.operands, geometry, strict=True)]
        if shape is None:

            def update(arrays: Sequence[Array]) -> int:
                kernel(*[read(arrays) for read in readers], **settings)
                return 0

            return update
        target = self._view(self.plan.places[node.out], node.out.dtype, None, shape)

        def step(arrays: Sequence[Array]) -> int:
            np.copyto(target, kernel(*[read(arrays) for read in readers], **settings))
            return 0

        return step

    def _reader(self, view: View, strides: Any, shape: Any) -> Callable[[Sequence[Array]], Array]:
        value = view.value
        if value.kind == "number":
            number = np.full(shape, value.source, value.dtype)
            return lambda arrays: number
        if value.kind == "argument":
            return functools.partial(_argument, value.source, view.offset, strides, shape)
        array = self._view(self.plan.place(view), value.dtype, strides, shape)
        return lambda arrays: array

    def _view(self, place: Place, dtype: Any, strides: Any, shape: Any) -> Array:
        """An array of the memory at a place."""
        address, _ = self._address(place)
        reach = 1 + sum((n - 1) * abs(t) for n, t in zip(shape, strides or (), strict=False))
        count = max(1, int(np.prod(shape)), reach)
        raw = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
        flat = np.frombuffer(raw, dtype)
        return flat[: int(np.prod(shape))].reshape(shape) if strides is None else _strided(flat, strides, shape)

    # ------------------------------------------------------------ looking at it
    def source(self) -> str:
        """The texts of its kernels."""
        texts = dict.fromkeys(item.text for part in self._parts for item in part.items if item.text)
        return "\n\n".join(source_of(text) for text in texts)

    def items(self) -> list[Item]:
        """Every row of the table in order."""
        return [item for part in self._parts for item in part.items]

    def ceilings(self) -> tuple[float, float]:
        """Those of NumPy's BLAS, and of a copy."""
        from gradflow_numpy.ceilings import ceilings

        return ceilings()

    def profile(self, arrays: Sequence[Array], seconds: float) -> list[Timed]:
        """Time every row of the table by itself, in one thread."""
        saved = [(array, array.copy()) for array in self._written]
        before = blas_threads() or 1
        try:
            results = self.run(arrays)  # held: the rows write into them
            if results is None:
                return []
            set_blas_threads(1)
            rows = [row for row in self._rows if row[0].what != "blas threads"]
            return [self._timed(item, address, seconds / max(1, len(rows))) for item, address in rows]
        finally:
            set_blas_threads(before)
            for array, values in saved:
                np.copyto(array, values)

    def _stored(self, store: Store) -> Array:
        """The bound memory that is written."""
        value = store.value
        place = Place("memory", store.memory.source, store.start * value.dtype.itemsize)
        return self._view(place, value.dtype, None, (value.size,))

    def _timed(self, item: Item, address: int, seconds: float) -> Timed:
        from gradflow_numba.drive_serial import repeat

        calls = 1
        while True:
            start = time.perf_counter()
            repeat(address, self._tasks, calls)
            took = time.perf_counter() - start
            if took > seconds / 4 or calls > 1_000_000:
                return Timed(item.what, took / calls, item.operations, item.nbytes)
            calls *= 4


def _argument(
    position: int, offset: int, strides: Sequence[int], shape: Sequence[int], arrays: Sequence[Array]
) -> Array:
    """What a call reads of an argument."""
    return _strided(arrays[position].reshape(-1)[offset:], strides, shape)


def _strided(flat: Array, strides: Sequence[int], shape: Sequence[int]) -> Array:
    item = flat.dtype.itemsize
    return np.lib.stride_tricks.as_strided(flat, shape, [t * item for t in strides])


def _is_ours(node: Node) -> bool:
    """Whether a product is computed by our own tiles, which read the second factor row by row."""
    return node.op == "gemm" and shape() is not None and _step(node.operands[1])[1] == 0


def _batch_gemm_words(plan: Plan, node: Node) -> Row:
    count, rows, inner, columns, *steps = node.settings
    words: Row = [count, rows, columns, inner]
    for view, (step, row, column), space in zip(node.operands, steps, ((rows, inner), (inner, columns)), strict=True):
        words += [Cell(plan.place(view)), step, *_step(view._replace(row=row, column=column, space=space))]
    return [*words, Cell(plan.places[node.out])]


def _table_words(plan: Plan, node: Node) -> Row:
    table, index = node.operands
    return [*node.space, Cell(plan.place(table)), node.settings, Cell(plan.place(index)), Cell(plan.places[node.out])]


def _uniform_words(plan: Plan, node: Node) -> Row:
    return [*node.space, Cell(plan.place(node.operands[0])), Cell(plan.places[node.out])]


def _copy_words(plan: Plan, node: Node) -> Row:
    lengths, strides = node.settings
    words = [n for pair in zip(lengths, strides, strict=True) for n in pair]
    return [node.out.size, Cell(plan.place(node.operands[0])), Cell(plan.places[node.out]), len(lengths), *words]


_WORDS: dict[str, Callable[[Plan, Node], Row]] = {
    "batch_gemm": _batch_gemm_words, "gather": _table_words, "scatter": _table_words, "uniform": _uniform_words,
    "strided_copy": _copy_words,
}  # fmt: skip


def _step(matrix: View) -> tuple[int, int]:
    """The step between rows (or columns, if it lies transposed), and whether it does."""
    rows, columns = matrix.space
    if matrix.column == 1 and (matrix.row >= columns or rows == 1):
        return max(matrix.row, columns), 0
    return max(matrix.column, rows), 1


def _work(group: Group) -> int:
    """About how many elements' worth of work a group is."""
    node = group.nodes[0]
    rows, columns = group.space
    if node.op == "gemm":
        return rows * columns * node.operands[0].space[1] // 5
    return rows * columns * len(group.nodes) // 2


_ITEMS = frozenset({"gemm", "batch_gemm", "gather", "scatter", "uniform", "strided_copy"})


@final
class Generator(CodeGenerator):
    """Native programs for arrays on the host."""

    fuses = True
    opens_updates = True

    @property
    def turns(self) -> int:  # type: ignore[override]
        """Our own products read the second factor row by row."""
        return SMALL_FACTOR if shape() is None else 1 << 62

    @property
    def items(self) -> frozenset[str]:  # type: ignore[override]
        """Products only where there is an OpenBLAS whose functions can be called."""
        return _ITEMS if blas.available() else _ITEMS - {"gemm", "batch_gemm"}

    def tasks(self, graph: Graph) -> int:
        """As many as there are threads, where there is enough work."""
        available = threads.available()
        if available == 1:
            return 1
        work = sum(
            n.space[0] * n.space[1] * (n.operands[0].space[1] // 5 if n.op == "gemm" else 1) for n in graph.nodes
        )
        return available if work > PAYS else 1

    def generate(self, plan: Plan, namespace: Any) -> Executable:
        """Make the native program; what the recorded run has left in the pool goes."""
        trim()
        return Native(plan, namespace)


__all__ = ["Generator", "Native"]
