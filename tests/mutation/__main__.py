"""Mutation test of the derivative rules, the operations and the tape: `python -m tests.mutation --help`.

Each mutant is one small change of one module. It is killed when a test fails, the import fails, or a test does not end;
what survives is either equivalent (no test could tell it from the original) or a gap in the suite.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.mutation import fork
from tests.mutation.mutants import Mutant, chosen, difference, mutants, session
from tests.mutation.reach import Reach, measure
from tests.mutation.report import write_report

MODULES = ["gradflow/tape.py", "gradflow/ops/*.py"]
FEW = 10  # tests that are tried before anything else


class Hunter:
    """Chooses the order of a mutant's tests: the group first that kills most for its cost."""

    def __init__(self, reach: Reach, sources: dict[str, str], budget: float) -> None:
        self.reach, self.sources, self.budget = reach, sources, budget
        self.met: Counter[tuple[str, str]] = Counter()
        self.killed: Counter[tuple[str, str]] = Counter()

    def hunt(self, mutant: Mutant) -> str:
        """The test that kills a mutant, or "" if it survives those that reach it."""
        module = mutant.module
        for tests in self._sessions(module, self._affordable(mutant)):
            killer = fork.meet(module, mutant.source, tests)
            for group in {_group(t) for t in tests}:
                self.met[module, group] += 1
            if killer:
                self.killed[module, _group(killer)] += 1
                return killer
        return ""

    def _affordable(self, mutant: Mutant) -> list[str]:
        """The tests that a mutant meets, the likeliest to kill it first."""
        tests = self.reach.tests(mutant.module, self.sources[mutant.module], mutant.row)
        left = self.budget * (10 if len(tests) == len(self.reach.seconds) else 1)  # of a line that only an import runs
        chosen = []
        for test in tests:
            if self.reach.cost(test) <= left:
                left -= self.reach.cost(test)
                chosen.append(test)
        return chosen

    def _sessions(self, module: str, tests: list[str]) -> Iterator[list[str]]:
        """The first few tests, the group that kills most for its cost, and the rest, as collecting takes time."""
        if len(tests) > FEW:
            yield tests[:FEW]
            tests = tests[FEW:]
            groups: dict[str, list[str]] = {}
            for test in tests:
                groups.setdefault(_group(test), []).append(test)
            best = min(groups, key=lambda g: self._cost(module, g, groups[g]))
            yield groups[best]
            tests = [test for test in tests if _group(test) != best]
        if tests:
            yield tests

    def _cost(self, module: str, group: str, tests: list[str]) -> float:
        likely = (self.killed[module, group] + 1) / (self.met[module, group] + 2)
        return (0.5 + sum(sorted(self.reach.cost(t) for t in tests)[:20])) / likely


def _group(test: str) -> str:
    return "gradflow" if test.startswith("gradflow/") else test.split("::", maxsplit=1)[0]


_hunter: Hunter


def _hunt(mutant: Mutant) -> tuple[Mutant, str]:
    return mutant, _hunter.hunt(mutant)


def run(module: str, path: Path, source: str, arguments: argparse.Namespace) -> None:
    """Meet the mutants of a module that have no result yet, and record each result as it comes."""
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    with use_db(path) as db:
        jobs = {item.job_id for item in chosen(db.work_items, arguments.replacements)}
        jobs &= {item.job_id for item in db.pending_work_items}
        if arguments.again:
            jobs |= {job for job, result in db.results if result.test_outcome == TestOutcome.SURVIVED}
        waiting = mutants(path, source, jobs)[: arguments.limit]
        start, survived = time.monotonic(), 0
        gc.freeze()  # the children look for garbage of their own alone
        with multiprocessing.get_context("fork").Pool(arguments.jobs) as pool:
            for n, (mutant, killer) in enumerate(pool.imap_unordered(_hunt, waiting), 1):
                diff = difference(source, mutant.source)
                outcome = TestOutcome.KILLED if killer else TestOutcome.SURVIVED
                db.set_result(mutant.job, WorkResult(WorkerOutcome.NORMAL, killer, outcome, diff))
                survived += not killer
                if not killer:
                    print(f"  survived at {module}:{mutant.row} ({mutant.operator})\n{diff}", flush=True)
                if n % 50 == 0:
                    each = (time.monotonic() - start) / n
                    print(f"  {module}: {n} of {len(waiting)}, {survived} survived, {each:.2f} s each", flush=True)


def main() -> None:
    """Run what is asked for, then write the report."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--module", action="append", help="a module's path (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants met at the same time")
    parser.add_argument("--limit", type=int, help="how many mutants of each module at most")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds of tests that a mutant meets")
    parser.add_argument("--examples", type=int, default=10, help="examples of each property")
    parser.add_argument("--replacements", type=int, default=6, help="how many of the replacements of each operator")
    parser.add_argument("--again", action="store_true", help="meet the survivors of an earlier run, too")
    parser.add_argument("--fresh", action="store_true", help="forget all earlier results")
    parser.add_argument("--report", action="store_true", help="write the report of the results there are, run nothing")
    parser.add_argument("--state", type=Path, default=Path("out/mutation"), help="where results are kept between runs")
    arguments = parser.parse_args()
    here, state = Path.cwd(), arguments.state.resolve()
    if arguments.fresh:
        shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True, exist_ok=True)
    every = sorted(str(p) for pattern in MODULES for p in Path().glob(pattern))
    every = [m for m in every if not m.endswith("__init__.py")]
    sources = {m: Path(m).read_text() for m in every}
    paths = {m: session(state, m, sources[m]) for m in every}
    if not arguments.report:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder).resolve() / "tree"
            shutil.copytree(here, root, ignore=shutil.ignore_patterns(".*", "out", "shared", "__pycache__"))
            fork.warm_up(root, arguments.examples)
            global _hunter
            _hunter = Hunter(measure(state, root, every), sources, arguments.budget)
            for module in arguments.module or every:
                run(module, paths[module], sources[module], arguments)
            os.chdir(here)
    write_report(here, paths, arguments)


if __name__ == "__main__":
    main()
