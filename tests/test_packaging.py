"""What is shipped and how it is built: version, metadata, lightness of the import, layers."""

from __future__ import annotations

import ast
import logging
import re
import subprocess
import sys
import tomllib
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import pytest

import gradflow
from gradflow import _version

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_version_stands_in_one_place(project: dict[str, Any]) -> None:
    assert gradflow.__version__ == _version.__version__ == metadata.version("gradflow")
    assert re.fullmatch(r"\d+\.\d+\.\d+", _version.__version__)
    assert "version" not in project["project"]
    assert "version" in project["project"]["dynamic"]
    stated = re.compile(r"""(?i)version\w*\s*=\s*["']\d+\.\d+""")
    sources = [*ROOT.glob("gradflow/**/*.py"), *ROOT.glob("backends/**/*.py")]
    assert [path.name for path in sources if stated.search(path.read_text())] == ["_version.py"]
    assert f"## [{_version.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_numpy_is_the_only_requirement(project: dict[str, Any]) -> None:
    assert project["project"]["dependencies"] == ["numpy>=2.0"]
    assert set(project["project"]["optional-dependencies"]) == {
        *("numba", "cuda12", "cuda13", "examples", "mpi", "test", "oracles", "bench", "docs")
    }


def test_entry_points_are_installed(project: dict[str, Any]) -> None:
    declared = project["project"]["entry-points"]
    installed = metadata.distribution("gradflow").entry_points
    for group, entries in declared.items():
        found = {entry.name: entry.value for entry in installed if entry.group == group}
        assert entries == found, "reinstall: pip install -e ."
    assert {entry.group for entry in installed} == set(declared)
    assert declared["gradflow.backends"]["numpy"] == "gradflow_numpy:plugin"
    assert declared["pytest11"]["gradflow"] == "gradflow.testing.plugin"


def test_every_package_is_shipped(project: dict[str, Any]) -> None:
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    plugins = sorted(f"backends/{path.parent.name}" for path in ROOT.glob("backends/*/__init__.py"))
    assert shipped == ["gradflow", *plugins]
    assert project["tool"]["importlinter"]["root_packages"] == [Path(package).name for package in shipped]


def test_types_are_shipped() -> None:
    assert resources.files("gradflow").joinpath("py.typed").is_file()


# ---------------------------------------------------------------------------------------------- lightness of the import
def modules_after(code: str) -> set[str]:
    printed = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(printed.stdout.split())


def test_import_loads_the_standard_library_and_numpy_only() -> None:
    allowed = sys.stdlib_module_names | {"gradflow", "numpy"}
    loaded = modules_after("import gradflow") - modules_after("pass")
    assert sorted(name for name in loaded if name.partition(".")[0] not in allowed) == []


def test_import_loads_no_heavy_module() -> None:
    heavy = {
        *("argparse", "asyncio", "concurrent.futures", "dataclasses", "difflib", "doctest", "email", "gzip", "hashlib"),
        *("http", "importlib.metadata", "importlib.resources", "logging", "multiprocessing", "shutil", "socket", "ssl"),
        *("subprocess", "tempfile", "tomllib", "unittest", "urllib.request", "zipfile"),
    }
    loaded = modules_after("import gradflow") - modules_after("import numpy")
    assert sorted(loaded & heavy) == []


# --------------------------------------------------------------------------------------------------------------- layers
def test_layers_hold() -> None:
    cli = pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    found = [logger for logger in logging.root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    were = [(logger, logger.disabled) for logger in found]
    try:
        assert cli.lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == cli.EXIT_STATUS_SUCCESS
    finally:  # it configures logging, which disables every logger there is
        for logger, disabled in were:
            logger.disabled = disabled


def test_the_linter_would_see_an_import_inside_a_function(tmp_path: Path) -> None:
    """Test the tester: the contract is worth something only if hiding an import in a function does not help."""
    pytest.importorskip("importlinter.cli", reason="import-linter is not installed")
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "upper.py").write_text("")
    (package / "lower.py").write_text("def f():\n    from house import upper\n")
    (tmp_path / "layers.toml").write_text(
        '[tool.importlinter]\nroot_package = "house"\n[[tool.importlinter.contracts]]\n'
        'name = "layers"\ntype = "layers"\nlayers = ["house.upper", "house.lower"]\n'
    )
    command = (
        "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports('layers.toml', no_cache=True))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "house.lower is not allowed to import house.upper" in done.stdout


def test_every_module_has_a_floor(project: dict[str, Any]) -> None:
    """A new top-level module of gradflow must be given its place in the layers contract."""
    layers = " ".join(project["tool"]["importlinter"]["contracts"][0]["layers"])
    placed = set(re.findall(r"gradflow\.(\w+)", layers))
    there = {path.stem for path in ROOT.glob("gradflow/*") if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - placed == {"__init__", "__main__", "_version"}


def test_plugins_import_only_what_is_theirs_to_see() -> None:
    """A plug-in sees gradflow.backend, gradflow.errors, and the compiler's plans for its code generator."""
    plans = {f"gradflow.compiler.{module}" for module in ("fuse", "generator", "graph", "memory", "regions")}
    for path in ROOT.glob("backends/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [f"gradflow.{a.name}" for a in node.names] if module == "gradflow" else [module]
            else:
                continue
            foreign = (
                {n for n in names if re.match(r"gradflow(\.|$)", n)} - {"gradflow.backend", "gradflow.errors"} - plans
            )
            assert not foreign, f"{path.name}:{node.lineno} imports {foreign}"
