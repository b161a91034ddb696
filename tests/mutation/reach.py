"""Which tests reach which line: the suite is run once, file by file, with coverage noting the running test."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tests.mutation.fork import in_child, run_pytest

# Tests that look at other processes, at the network or at the clock: a mutant in this process's memory escapes them.
LEFT_OUT = {"test_backend_choice.py", "test_benchmarks.py", "test_example.py", "test_packaging.py", "test_plugin.py"}

OVERHEAD = 0.003  # seconds that pytest takes around each test


class Reach:
    """What one run of the unchanged suite found.

    Attributes:
        seconds: node id of each test that passed -> how long it took.
        lines: module -> line -> node ids of the tests that executed it; "" stands for the import.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.seconds: dict[str, float] = found["seconds"]
        self.lines: dict[str, dict[str, list[str]]] = found["lines"]
        self.breadth = Counter(test for lines in self.lines.values() for tests in lines.values() for test in tests)

    def cost(self, test: str) -> float:
        """Seconds that a test takes, with all that pytest does around it."""
        return self.seconds[test] + OVERHEAD

    def tests(self, module: str, source: str, row: int) -> list[str]:
        """The tests that reach a line, those first that are quick and reach little else; all tests where none does."""
        at = self.lines.get(module, {})
        here = set(at.get(str(row), ()))
        near = set().union(*(at.get(str(r), ()) for r in _rows(source, row))) | here
        named = _names(source, row)
        tests = near - {""} or self.seconds.keys()

        def rank(test: str) -> tuple[bool, bool, float]:
            unnamed = named.isdisjoint(re.findall(r"\w+", test))
            return test not in here, unnamed, self.breadth[test] * self.cost(test)

        return sorted(tests & self.seconds.keys(), key=rank)


def _rows(source: str, row: int) -> range:
    """The lines that are executed when the code of a line is: of its statement, or of the function that it begins."""
    best = range(row, row + 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.stmt) and node.lineno <= row <= (node.end_lineno or row):
            last = node.end_lineno or row
            if isinstance(node, ast.FunctionDef):
                in_header = row < node.body[0].lineno
                best = range(node.body[0].lineno, last + 1) if in_header else best
            elif body := getattr(node, "body", None):
                best = range(node.lineno, body[0].lineno) if row < body[0].lineno else range(row, row + 1)
            else:
                best = range(node.lineno, last + 1)
    return best


def _names(source: str, row: int) -> set[str]:
    """What the line names, or the function that it decorates: tests are often called after it."""
    lines = source.splitlines()[row - 1 :]
    if lines[0].startswith("@"):
        lines[0] = next(line for line in lines if line.startswith("def ")).partition("(")[0]
    return {word.strip("_") for word in re.findall(r"[a-z_]\w+", lines[0])}


def test_files(root: Path) -> Iterator[list[str]]:
    """What is collected together: each test file, and all doctests of the package."""
    for path in sorted((root / "tests").glob("**/test_*.py")):
        if path.name not in LEFT_OUT:
            yield [str(path.relative_to(root))]
    yield ["gradflow"]


def measure(state: Path, root: Path, modules: list[str]) -> Reach:
    """Run the unchanged suite under coverage, but for the files of which an earlier run is kept."""
    found: dict[str, Any] = {"seconds": {}, "lines": {}}
    shared = _digest(path for folder in ("gradflow", "backends", "tests") for path in root.glob(f"{folder}/**/*.py"))
    for files in test_files(root):
        kept = state / f"reach-{shared}-{_digest(root / file for file in files)}.json"
        if not kept.exists():
            outcome = in_child(partial(_covered, root, files, modules), seconds=3600)
            if outcome.value is None:
                raise SystemExit(f"the unchanged suite does not run: {files[0]}\n{outcome.output[-3000:]}")
            kept.write_text(json.dumps(outcome.value))
        met = json.loads(kept.read_text())
        print(f"  {files[0]}: {len(met['seconds'])} tests; left out, as they do not pass: {met['others']}", flush=True)
        found["seconds"] |= met["seconds"]
        for module, lines in met["lines"].items():
            for line, tests in lines.items():
                found["lines"].setdefault(module, {}).setdefault(line, []).extend(tests)
    return Reach(found)


def _digest(paths: Iterable[Path]) -> str:
    """Of the files that every test depends on, or of one test file."""
    paths = list(paths)
    several = len(paths) > 1
    digest = hashlib.sha256()
    for path in sorted(paths):
        own = path.name.startswith("test_") or "mutation" in path.parts
        if path.is_file() and not (several and own):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


class _Watch:
    """A pytest plug-in: tells coverage which test runs, and notes how long each took that passed."""

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        self.seconds: dict[str, float] = {}
        self.others: list[str] = []

    def pytest_runtest_setup(self, item: Any) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" and report.outcome == "passed":
            self.seconds[report.nodeid] = round(report.duration, 4)
        elif report.outcome != "passed":
            self.seconds.pop(report.nodeid, None)
            self.others.append(report.nodeid)


def _covered(root: Path, files: list[str], modules: list[str]) -> dict[str, Any]:
    import coverage

    watched = coverage.Coverage(data_file=None, include=[str(root / m) for m in modules], config_file=False)
    watched.start()
    watch = _Watch(watched)
    run_pytest(files, watch)
    watched.stop()
    data = watched.get_data()
    lines = {m: data.contexts_by_lineno(str(root / m)) for m in modules}
    return {"seconds": watch.seconds, "others": watch.others, "lines": lines}
