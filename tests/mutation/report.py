"""docs/mutation.md: how many mutants of each module were killed, and every one that was not, with its judgement."""

from __future__ import annotations

import argparse
import tomllib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.mutation.mutants import SKIPPED

HEAD = """# Mutation test of the rules and the tape

How good are the tests? Each mutant is `gradflow/ops/` or `gradflow/tape.py` with one small change: an operator, a
comparison, a number, a condition, a decorator, a loop. A mutant is killed when a test fails on it, when it cannot be
imported, or when a test does not end. What survives is either equivalent, as no test could tell it from the original,
or a gap in the suite; every survivor is listed below with its judgement.

Written by `python -m tests.mutation` (`--help` lists its options; it needs `cosmic-ray` and `coverage`), which is no
part of CI. Mutants are made by cosmic-ray; those left out:

{skipped}

Every place is mutated; of the replacements of one operator or comparison, which are up to six, {replacements} are drawn
with a fixed seed. The others count as not run.

A mutant meets the tests that reach its line, as one run under coverage found them, those first that are quick and
reach little else, up to {budget} of them (ten times as much where only an import runs the line), with {examples}
examples for each property. Tests that start processes of their own are left out. So a rate below is a lower bound.
"""
HERE = Path(__file__).parent


class Result(NamedTuple):
    """What became of one mutant."""

    module: str
    row: int
    killer: str
    diff: str


class Tally(NamedTuple):
    """What became of the mutants of one module."""

    skipped: Counter[str]
    waiting: int
    results: list[Result]


def read(module: str, path: Path) -> Tally:
    """The results in a session."""
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import WorkerOutcome

    skipped: Counter[str] = Counter()
    results = []
    with use_db(path) as db:
        for item, result in db.completed_work_items:
            if result.worker_outcome == WorkerOutcome.SKIPPED:
                skipped[result.output] += 1
            else:
                row = item.mutations[0].start_pos[0]
                results.append(Result(module, row, result.output, result.diff))
        return Tally(skipped, len(db.pending_work_items), results)


def judgements() -> dict[tuple[str, str], tuple[str, str]]:
    """Module and difference of a survivor, without spaces -> "equivalent" or "gap", and why."""
    found = {}
    for verdict, entries in tomllib.loads((HERE / "judged.toml").read_text()).items():
        for entry in entries:
            for before, *afters in entry["lines"]:
                for after in afters:
                    found[entry["module"], squeezed(f"-{before}+{after}")] = verdict, entry["why"]
    return found


def _row(*cells: object) -> str:
    return f"| {' | '.join(str(c) for c in cells)} |"


def _rate(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def write_report(root: Path, paths: dict[str, Path], options: argparse.Namespace) -> None:
    """Write docs/mutation.md from the sessions of the modules, and print its table."""
    judged = judgements()
    tallies = {module: read(module, path) for module, path in paths.items()}
    skipped = sum((t.skipped for t in tallies.values()), Counter())
    table = [
        _row("module", "mutants", "killed", "of these by a timeout", "survived", "of these equivalent", "killed"),
        _row("---", *["---:"] * 6),
    ]
    listed: list[str] = []
    sums = [0] * 5
    for module, tally in tallies.items():
        survivors = [r for r in tally.results if not r.killer]
        verdicts = [judged.get((module, squeezed(r.diff)), ("gap", "not judged yet.")) for r in survivors]
        figures = [
            len(tally.results),
            len(tally.results) - len(survivors),
            sum(r.killer == "timeout" for r in tally.results),
            len(survivors),
            sum(verdict == "equivalent" for verdict, _ in verdicts),
        ]
        sums = [a + b for a, b in zip(sums, figures, strict=True)]
        name = f"`{module}`" + (f" ({tally.waiting} not run)" if tally.waiting else "")
        table.append(_row(name, *figures, _rate(figures[1], figures[0])))
        listed += _listed(module, survivors, verdicts)
    table.append(_row("all", *sums, f"**{_rate(sums[1], sums[0])}**"))
    reasons = "\n".join(f"- {skipped[key]} times {why}." for key, why in SKIPPED.items())
    closing = f"Of the mutants that are not equivalent, {_rate(sums[1], sums[0] - sums[4])} are killed."
    head = HEAD.format(
        skipped=reasons,
        budget=f"{options.budget:g} seconds",
        examples=options.examples,
        replacements=options.replacements,
    )
    text = "\n".join([head, "## Figures\n", *table, "", closing, "", "## Survivors", *listed, ""])
    (root / "docs" / "mutation.md").write_text(text)
    print("\n".join([*table, closing]))


def _listed(module: str, survivors: list[Result], verdicts: list[tuple[str, str]]) -> list[str]:
    """The survivors of a module under their judgements."""
    lines = [f"\n### {module}\n"] if survivors else []
    together: dict[tuple[str, str], list[Result]] = {}
    for survivor, judgement in zip(survivors, verdicts, strict=True):
        together.setdefault(judgement, []).append(survivor)
    for (verdict, why), group in together.items():
        lines += [f"**{verdict.capitalize()}**: {why}", "", "```diff"]
        lines += [plain(r.diff) for r in sorted(group, key=lambda r: (r.row, r.diff))]
        lines += ["```", ""]
    return lines


def plain(diff: str) -> str:
    """A difference with one space wherever there are several: cosmic-ray leaves some behind."""
    return "\n".join(" ".join(line.split()) for line in diff.splitlines())


def squeezed(text: str) -> str:
    """A text without any space."""
    return "".join(text.split())
