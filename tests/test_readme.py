"""README.md and docs/: every Python block runs and prints what it says; the gate's commands stand where it looks.

A block marked `python numba` needs Numba, and is left out where that is missing.
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import gradflow as gf

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    page: Path
    line: int
    code: str
    needs: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, language: str = "python") -> list[Block]:
    text = page.read_text()
    found = re.finditer(rf"^```{language}(?: (\w+))?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, match.start(2)) + 1, match[2], match[1] or "") for match in found]


def scripts() -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if ">>>" not in block.code]


def dialogues() -> list[tuple[Path, str]]:
    """Each page with a session; if some of its blocks need a package, with and without it."""
    needs = [{block.needs for block in blocks(page) if ">>>" in block.code} for page in PAGES]
    return [(page, package) for page, packages in zip(PAGES, needs, strict=True) for package in sorted(packages)]


@pytest.mark.parametrize("block", scripts(), ids=str)
def test_script_runs(block: Block, tmp_path: Path) -> None:
    """In a process of its own, as whoever copies it would; a line that ends in `# 0.5` prints that."""
    if block.needs:
        pytest.importorskip(block.needs)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", block.code], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^print\(.*\)\s+# (.*)$", block.code, re.MULTILINE)
    assert done.stdout.splitlines()[: len(said)] == said


@pytest.mark.parametrize(("page", "package"), dialogues(), ids=lambda part: getattr(part, "name", part or "alone"))
def test_dialogue_is_true(page: Path, package: str) -> None:
    """The blocks of a page are one session, in which `gf` and `np` are there."""
    if package:
        pytest.importorskip(package)
    names: dict[str, object] = {"gf": gf, "np": np}
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    for block in blocks(page):
        if ">>>" in block.code and block.needs in ("", package):
            test = doctest.DocTestParser().get_doctest(block.code, {}, str(block), str(page), block.line - 1)
            test.globs = names  # and no copy: functions of earlier blocks see what later ones assign
            runner.run(test, out=report.append, clear_globs=False)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


def test_quotes_stand_in_the_source() -> None:
    """A block marked `py` quotes gradflow's own code."""
    source = "".join(path.read_text() for path in ROOT.glob("gradflow/ops/*.py"))
    quoted = [line for page in PAGES for block in blocks(page, "py") for line in block.code.splitlines()]
    assert quoted
    assert [line for line in quoted if line.removesuffix('"""') not in source] == []


# ----------------------------------------------------------------------------------------------------------- the gate
def marked(name: str) -> str:
    """The code block after `<!-- ci: NAME -->`, found as .ci/run finds it."""
    text = (ROOT / "README.md").read_text()
    assert text.count(f"<!-- ci: {name} -->") == 1
    match = re.search(rf"<!-- ci: {name} -->\n+```sh\n(.*?)\n```", text, re.DOTALL)
    assert match is not None, f"no code block right after <!-- ci: {name} -->"
    return match[1]


def test_the_commands_of_the_gate() -> None:
    make = "python3 -m venv .venv && .venv/bin/pip install -e"
    assert marked("main job") == f'{make} ".[examples]" && .venv/bin/python examples/train_mlp.py'
    assert marked("tests") == f'{make} ".[test]" && .venv/bin/python -m pytest -n auto'


def test_the_gate_extracts_them() -> None:
    awk = re.search(r"    awk -v mark=.*?' README\.md\n", (ROOT / ".ci/run").read_text(), re.DOTALL)
    assert awk is not None
    for name in ("main job", "tests"):
        script = awk[0].replace("$1", name)
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.strip() == marked(name)


# -------------------------------------------------------------------------------------------------------------- links
def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in [slug(h) for h in re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)], target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`((?:gradflow|backends|docs|examples|tests|benchmarks)/[\w./]*)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []
