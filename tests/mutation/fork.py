"""A warm process that has imported everything but gradflow, and children of it that each meet one mutant."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

HANG = 20  # seconds of processor time after which a test is taken to run for ever; the slowest takes 2
MEMORY = 16 << 30
WITHOUT_PLUGIN = ["-p", "no:gradflow"]  # it would import gradflow before a mutant is put in place


class Outcome(NamedTuple):
    """How a child ended: what its function returned, the signal that killed it, what it printed."""

    value: Any
    signal: int
    output: str


def warm_up(root: Path, examples: int) -> None:
    """Import what the tests import, gradflow excepted, and look for gradflow and its tests under `root` alone."""
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="Agg")
    sys.dont_write_bytecode = False  # thousands of children import the same files
    here = str(Path.cwd())
    sys.path[:] = [str(root), str(root / "backends"), *(p for p in sys.path if p and not p.startswith(here))]
    os.chdir(root)
    import hypothesis
    import numpy.random
    import numpy.testing  # noqa: F401
    import pytest
    from hypothesis.extra import numpy as _  # noqa: F401

    for helpful in ("torch", "mpmath", "scipy.special"):
        if importlib.util.find_spec(helpful.split(".")[0]):
            __import__(helpful)
    hypothesis.settings.register_profile(
        "mutation",
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],  # a failure is enough: it is not shrunk
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["--version", "-c", os.devnull, *WITHOUT_PLUGIN])  # imports pytest's own modules and plug-ins
    if "gradflow" in sys.modules:
        raise SystemExit("gradflow was imported before it was mutated")
    gc.collect()
    gc.freeze()  # pytest collects garbage thrice in each child: not this process's, too


def in_child(function: Callable[[], Any], seconds: float) -> Outcome:
    """Call a function in a fork of this process; a fork that hangs is killed."""
    with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            try:
                os.dup2(printed.fileno(), 1)
                os.dup2(printed.fileno(), 2)
                for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
                    del sys.modules[name]
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
                deadline(seconds)
                answer.write(json.dumps(function()).encode())
                answer.flush()
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        _, status = os.waitpid(child, 0)
        printed.seek(0)
        answer.seek(0)
        raw = answer.read()
        output = printed.read().decode(errors="replace")
        return Outcome(json.loads(raw) if raw else None, os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, output)


def deadline(seconds: float) -> None:
    """Die after so much processor time, or thrice as much of the clock's: the default of both signals."""
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 3 * seconds)


def run_pytest(arguments: list[str], *plugins: Any) -> int:
    """Run tests in this process."""
    import pytest

    known = "ignore::pytest.PytestAssertRewriteWarning"  # plug-ins were imported before, on purpose
    quiet = ["-q", "--tb=line", "--assert=plain", "-p", "no:cacheprovider", "-W", known]
    quiet += ["--hypothesis-profile=mutation", *WITHOUT_PLUGIN]
    return int(pytest.main([*quiet, *arguments], plugins=list(plugins)))


class Chosen:
    """A pytest plug-in: runs the chosen tests in their order, stops at the first that fails, and remembers it."""

    def __init__(self, tests: list[str]) -> None:
        self.rank = {test: i for i, test in enumerate(tests)}
        self.killer = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_setup(self) -> None:
        deadline(HANG)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.killer = self.killer or f"collection of {report.nodeid}"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.killer = self.killer or report.nodeid


class _Substitute(MetaPathFinder):
    """Finds one module, with a source of ours in place of its file's."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        code = compile(self.source, str(self.path), "exec", dont_inherit=True)

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        return importlib.util.spec_from_file_location(name, self.path, loader=Loader(name, str(self.path)))


def meet(module: str, source: str, tests: list[str]) -> str:
    """Run tests on a mutant, in a child: the test that kills it, or "" if it survives them."""
    name = module.removesuffix(".py").replace("/", ".")

    def session() -> str:
        sys.meta_path.insert(0, _Substitute(name, Path(module).resolve(), source))
        try:
            import gradflow  # noqa: F401
        except Exception as error:
            return f"import: {type(error).__name__}"
        chosen = Chosen(tests)
        files = list(dict.fromkeys(test.split("::")[0] for test in tests))
        code = run_pytest(["-x", *files], chosen)
        if code not in (0, 5) and not chosen.killer:
            return f"pytest's exit with {code}"
        return chosen.killer

    outcome = in_child(session, HANG)
    if outcome.signal in (signal.SIGALRM, signal.SIGVTALRM):
        return "timeout"
    if outcome.value is None:
        return f"crash: {outcome.output.strip().splitlines()[-1] if outcome.output.strip() else outcome.signal}"
    return str(outcome.value)
