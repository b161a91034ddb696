"""The mutants of a module: cosmic-ray's operators, less those that make no program or no other program."""

from __future__ import annotations

import ast
import difflib
import hashlib
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

FAMILIES = [
    {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"},
    {"BitAnd", "BitOr", "BitXor", "LShift", "RShift"},
    {"Eq", "NotEq", "Lt", "LtE", "Gt", "GtE"},
    {"Is", "IsNot"},
]
SKIPPED = {
    "kind": "an operator replaced by one of another family (a shift for a sum, identity for equality), or −x by +x, "
    "which the deletion of the sign makes too: nearly all would raise a TypeError and flatter the rate",
    "grammar": "no Python: a `/` or `*` that separates arguments was replaced",
    "same": "the same program: only an annotation changed, which `from __future__ import annotations` never evaluates, "
    "or a `/` in a signature became a `*`",
}


class Mutant(NamedTuple):
    """One change of one module."""

    job: str  # its id in cosmic-ray's session
    module: str  # path from the root of the repository
    row: int
    operator: str
    source: str  # of the whole module, changed


def in_family(operator: str) -> bool:
    """Whether a replacement stays among operators of its kind (all other mutations do)."""
    kind, *names = operator.split("/")[1].split("_")
    if kind in ("ReplaceBinaryOperator", "ReplaceComparisonOperator"):
        return any(family.issuperset(names) for family in FAMILIES)
    return kind != "ReplaceUnaryOperator" or names[-1] != "UAdd"


class _Unannotated(ast.NodeTransformer):
    """Takes the annotations off a program whose annotations are never evaluated."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_arguments(self, node: ast.arguments) -> ast.arguments:
        """All as one kind: a `/` that became a `*` is left to the type checker."""
        self.generic_visit(node)
        node.args = [*node.posonlyargs, *node.args, *node.kwonlyargs]
        node.defaults += [default for default in node.kw_defaults if default]
        node.posonlyargs, node.kwonlyargs, node.kw_defaults = [], [], []
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        self.generic_visit(node)
        node.annotation = ast.Constant(None)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        self.generic_visit(node)
        node.returns = None
        return node


def meaning(source: str) -> str:
    """What a program says, without layout, comments and annotations."""
    return ast.dump(_Unannotated().visit(ast.parse(source)))


def session(state: Path, module: str, source: str) -> Path:
    """Where cosmic-ray's session of a module in its present form lies; it is made, and filtered, if there is none."""
    from cosmic_ray.commands import init
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    path = state / f"{module.removesuffix('.py').replace('/', '.')}-{digest}.sqlite"
    if path.exists():
        return path
    half = path.with_suffix(".half")
    half.unlink(missing_ok=True)
    plain = meaning(source)
    with use_db(half) as db:
        init([Path(module)], db, {})
        for item in db.work_items:
            (spec,) = item.mutations
            reason = "" if in_family(spec.operator_name) else "kind"
            if not reason:
                try:
                    changed = mutate_code(source, get_operator(spec.operator_name)(), spec.occurrence)
                    reason = "same" if meaning(changed) == plain else ""
                except SyntaxError:
                    reason = "grammar"
            if reason:
                db.set_result(item.job_id, WorkResult(WorkerOutcome.SKIPPED, reason))
    half.rename(path)
    return path


def chosen(items: Iterable[Any], replacements: int) -> list[Any]:
    """Of the replacements of each operator and comparison this many, drawn with a fixed seed; all other mutants."""
    kept: list[Any] = []
    places: dict[tuple[Any, ...], list[Any]] = {}
    for item in items:
        (spec,) = item.mutations
        kind = spec.operator_name.split("_")[0]
        if "Binary" in kind or "Comparison" in kind:
            if in_family(spec.operator_name):
                places.setdefault((str(spec.module_path), *spec.start_pos, kind), []).append(item)
        else:
            kept.append(item)
    for place, found in places.items():
        found.sort(key=lambda item: item.mutations[0].operator_name)
        kept += Random(repr(place)).sample(found, min(replacements, len(found)))
    return kept


def mutants(path: Path, source: str, jobs: set[str]) -> list[Mutant]:
    """The mutants of a session with these ids, from the top of the module down."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_db import use_db

    found = []
    with use_db(path) as db:
        for item in db.work_items:
            if item.job_id in jobs:
                (spec,) = item.mutations
                changed = mutate_code(source, get_operator(spec.operator_name)(), spec.occurrence)
                row, name = spec.start_pos[0], spec.operator_name.split("/")[1]
                found.append(Mutant(item.job_id, str(spec.module_path), row, name, changed))
    return sorted(found, key=lambda m: (m.row, m.operator, m.source))


def difference(before: str, after: str) -> str:
    """The lines that differ, with - and + in front."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
    return "\n".join(f"{line[0]} {line[1:].strip()}" for line in list(lines)[2:] if line[0] in "+-")
