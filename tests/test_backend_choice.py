"""Which backend a tensor gets, and what is said when it cannot be had."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gradflow import backend as choice
from gradflow import config
from gradflow.backend import Backend, Plugin, backends, choice_source, get_backend, resolve, set_backend, use_backend
from gradflow.errors import ArgumentError, BackendUnavailableError, DTypeError, UnknownBackendError


class FakeBackend(Backend):
    def __init__(self, name: str, device: str) -> None:
        self.name, self.device = name, device
        self.kernels, self.residual_kernels, self.vjps = {}, {}, {}

    def asarray(self, obj: Any, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(obj, dtype, copy=copy)

    def to_numpy(self, array: Any) -> Any:
        return array

    def extent(self, array: Any) -> tuple[Any, int, int]:
        return array, 0, array.nbytes

    def synchronize(self) -> None: ...

    def versions(self) -> dict[str, str]:
        return {"fakelib": "1.5"}

    def num_threads(self) -> int:
        return 3

    def code_generator(self) -> Any:
        return None

    def set_num_threads(self, n: int | None) -> None: ...


class FakePlugin(Plugin):
    """Two devices, the first of which is the default."""

    def __init__(self, name: str, extra: str | None = None, reason: str | None = None) -> None:
        self.name, self.extra, self.reason = name, extra, reason

    def unavailable(self) -> str | None:
        return self.reason

    def create(self, device: str | None) -> Backend:
        number = {None: 0, "0": 0, "1": 1, "dev:0": 0, "dev:1": 1}.get(device)
        if number is None:
            raise ArgumentError(f"{self.name} has no device {device!r}")
        return FakeBackend(self.name, f"dev:{number}")


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Empty the machine of backends and choices; the function returned installs fake plug-ins on it."""
    monkeypatch.delenv("GRADFLOW_BACKEND", raising=False)
    for name, value in {"_current": None, "_current_source": "", "_by_text": {}, "_instances": {}}.items():
        monkeypatch.setattr(choice, name, value)
    module = ModuleType("fake_plugins")
    monkeypatch.setitem(sys.modules, "fake_plugins", module)
    entries: list[EntryPoint] = []

    def entry_points(*, group: str) -> list[EntryPoint]:
        assert group == "gradflow.backends"
        return entries

    def add(*plugins: Any) -> None:
        for plugin in plugins:
            attribute = f"plugin_{len(entries)}"
            setattr(module, attribute, plugin)
            entries.append(EntryPoint(plugin.name, f"fake_plugins:{attribute}", "gradflow.backends"))
        choice._entry_points.cache_clear()
        choice._best.cache_clear()

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)
    add()
    yield add
    choice._entry_points.cache_clear()
    choice._best.cache_clear()


@pytest.fixture
def three(install: Install) -> None:
    install(FakePlugin("numpy"), FakePlugin("numba", "numba"), FakePlugin("fakelib"))


# ----------------------------------------------------------------------------------------------------------- precedence
@pytest.mark.usefixtures("three")
def test_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (get_backend().name, choice_source()) == ("numpy", "default")
    set_backend(None)
    monkeypatch.setenv("GRADFLOW_BACKEND", "numba")
    assert (get_backend().name, choice_source()) == ("numba", "GRADFLOW_BACKEND=numba")
    set_backend("numpy")
    assert (get_backend().name, choice_source()) == ("numpy", "set_backend()")
    with use_backend("fakelib"):
        assert (get_backend().name, choice_source()) == ("fakelib", "use_backend()")
        assert resolve("numba").name == "numba"
        set_backend("numba")  # the process's choice changes, the block's stays
        assert get_backend().name == "fakelib"
    assert get_backend().name == "numba"


@pytest.mark.usefixtures("three")
def test_environment_is_read_at_first_use_and_then_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_BACKEND", "fakelib")
    assert get_backend().name == "fakelib"
    monkeypatch.setenv("GRADFLOW_BACKEND", "numba")
    assert get_backend().name == "fakelib"


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("text", ["numba", " NumBa ", "NUMBA", "numba:", "numba:dev:0", "numba : 0"])
def test_names_are_stripped_and_case_does_not_matter(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    assert resolve(text) is resolve("numba")
    monkeypatch.setenv("GRADFLOW_BACKEND", text)
    assert get_backend() is resolve("numba")


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize("text", ["", "  "])
def test_empty_environment_is_unset(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GRADFLOW_BACKEND", text)
    assert (get_backend().name, choice_source()) == ("numpy", "default")


@pytest.mark.usefixtures("three")
def test_use_backend_nests_and_restores_after_exceptions() -> None:
    with use_backend("numba") as outer:
        with pytest.raises(KeyError), use_backend("fakelib"):
            raise KeyError
        assert get_backend() is outer is resolve("numba")
        with pytest.raises(UnknownBackendError), use_backend("nonsense"):
            pytest.fail("the block must not run")
        assert get_backend() is outer
    assert get_backend().name == "numpy"


@pytest.mark.usefixtures("three")
def test_use_backend_decorates() -> None:
    @use_backend("numba")
    def name() -> str:
        return get_backend().name

    assert [name(), get_backend().name, name()] == ["numba", "numpy", "numba"]


@pytest.mark.usefixtures("three")
def test_use_backend_is_local_to_thread_and_task() -> None:
    seen = []
    with use_backend("numba"):
        thread = threading.Thread(target=lambda: seen.append(get_backend().name))
        thread.start()
        thread.join()
    assert seen == ["numpy"]

    async def task(name: str) -> str:
        with use_backend(name):
            await asyncio.sleep(0)
            return get_backend().name

    async def both() -> list[str]:
        return await asyncio.gather(task("numba"), task("fakelib"))

    assert asyncio.run(both()) == ["numba", "fakelib"]


@pytest.mark.usefixtures("three")
def test_set_backend_reaches_every_thread() -> None:
    set_backend("numba")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(get_backend().name))
    thread.start()
    thread.join()
    assert seen == ["numba"]


# --------------------------------------------------------------------------------------------------------- one instance
@pytest.mark.usefixtures("three")
def test_one_instance_per_device() -> None:
    first, second = resolve("numba"), resolve("numba:1")
    assert (first.device, second.device) == ("dev:0", "dev:1")
    assert resolve("numba:0") is resolve("numba:dev:0") is first is not second
    assert resolve(second) is second
    for twin in (copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))):
        assert twin(first) is first
        assert twin(second) is second
    assert repr(second) == "<backend numba on dev:1>"


def test_threads_that_race_get_one_instance(install: Install) -> None:
    barrier, made = threading.Barrier(4), []

    class Slow(FakePlugin):
        def create(self, device: str | None) -> Backend:
            made.append(device)
            return super().create(device)

    install(Slow("numpy"))

    def race() -> None:
        barrier.wait()
        seen.append(get_backend())

    seen: list[Backend] = []
    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, seen))) == len(made) == 1


@pytest.mark.usefixtures("three")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ArgumentError, match="numba has no device '7'"):
        resolve("numba:7")


# ----------------------------------------------------------------------------------------------------------------- auto
def test_auto_takes_the_best_and_logs_it_once(install: Install, caplog: pytest.LogCaptureFixture) -> None:
    install(FakePlugin("numpy"), FakePlugin("numba"), FakePlugin("cupy", "cuda13", "no CUDA driver was found"))
    with caplog.at_level(logging.INFO, "gradflow"):
        assert resolve("auto") is resolve(" AUTO ") is resolve("numba")
    assert [record.getMessage() for record in caplog.records] == [
        "backend auto: chose numba on dev:0 (not cupy: no CUDA driver was found)"
    ]


def test_auto_from_the_environment(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakePlugin("numpy"), FakePlugin("cupy"), FakePlugin("fakelib"))
    monkeypatch.setenv("GRADFLOW_BACKEND", "auto")
    assert (get_backend().name, choice_source()) == ("cupy", "GRADFLOW_BACKEND=auto")


def test_auto_names_no_device(install: Install) -> None:
    install(FakePlugin("numpy"))
    with pytest.raises(ArgumentError, match=r"`auto` chooses the backend") as caught:
        resolve("auto:1")
    assert 'fix: backend="cupy:1"' in str(caught.value)


def test_auto_with_nothing_to_choose(install: Install) -> None:
    install(FakePlugin("numpy", None, "it is broken"), FakePlugin("fakelib"))
    with pytest.raises(BackendUnavailableError, match="numpy: it is broken"):
        resolve("auto")


# --------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.usefixtures("three")
def test_unknown_name() -> None:
    with pytest.raises(UnknownBackendError) as caught:
        resolve("numbaa")
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == (
        "backend=\"numbaa\" names no backend; did you mean 'numba'?\n"
        "  why: valid names are auto, cupy, fakelib, numba, numpy; installed here: fakelib, numba, numpy.\n"
        '  fix: backend="numba"'
    )


@pytest.mark.usefixtures("three")
def test_unknown_name_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADFLOW_BACKEND", "tensorflow")
    for _ in range(2):  # never a silent fallback, not the second time either
        with pytest.raises(UnknownBackendError) as caught:
            get_backend()
        assert str(caught.value).startswith(
            "GRADFLOW_BACKEND=tensorflow names no backend.\n  why: valid names are auto"
        )
        assert str(caught.value).endswith("fix: GRADFLOW_BACKEND=numpy")
    with use_backend("numba") as chosen:  # an explicit choice does not ask the environment
        assert get_backend() is chosen


@pytest.mark.usefixtures("three")
def test_known_but_not_installed() -> None:
    with pytest.raises(BackendUnavailableError) as caught:
        resolve("cupy:1")
    assert isinstance(caught.value, ImportError)
    assert str(caught.value) == (
        'backend="cupy:1" cannot be used on this machine.\n'
        "  why: no installed package offers it (gradflow comes with numpy and numba).\n"
        '  fix: pip install "gradflow[cuda12]" or pip install "gradflow[cuda13]"'
    )


def test_installed_but_unusable(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakePlugin("numpy"), FakePlugin("numba", "numba", "Numba is not installed"))
    monkeypatch.setenv("GRADFLOW_BACKEND", "numba")
    with pytest.raises(BackendUnavailableError) as caught:
        get_backend()
    assert str(caught.value).startswith("GRADFLOW_BACKEND=numba cannot be used on this machine.")
    assert "why: Numba is not installed\n" in str(caught.value)
    assert '[numba]"' in str(caught.value)


def test_creation_that_fails(install: Install) -> None:
    class Broken(FakePlugin):
        def create(self, device: str | None) -> Backend:
            raise OSError("libfake.so: cannot open shared object file")

    install(FakePlugin("numpy"), Broken("fakelib", "gpu"))
    with pytest.raises(BackendUnavailableError, match=r"OSError: libfake\.so: cannot open") as caught:
        resolve("fakelib")
    assert isinstance(caught.value.__cause__, OSError)
    assert [info.available for info in backends() if info.name == "fakelib"] == [False]


def test_two_packages_offer_one_name(install: Install) -> None:
    install(FakePlugin("numpy"), FakePlugin("numpy"))
    with pytest.raises(BackendUnavailableError, match="both offer it"):
        get_backend()


def test_an_entry_point_that_is_no_plugin(install: Install) -> None:
    install(FakePlugin("numpy"), SimpleNamespace(name="fakelib"))
    with pytest.raises(BackendUnavailableError, match=r"not an instance of gradflow\.backend\.Plugin"):
        resolve("fakelib")


# ----------------------------------------------------------------------------------------------------------- backends()
def test_the_list_of_backends(install: Install) -> None:
    install(FakePlugin("numpy"), FakePlugin("numba", "numba", "Numba is not installed"), FakePlugin("fakelib"))
    with use_backend("fakelib:1"):
        assert [str(info) for info in backends()] == [
            "cupy: not available: no installed package offers it (gradflow comes with numpy and numba).",
            "fakelib: available on dev:1 (fakelib 1.5), the default",
            "numba: not available: Numba is not installed",
            "numpy: available on dev:0 (fakelib 1.5)",
        ]
    info = backends()[-1]
    assert info == ("numpy", True, None, "dev:0", {"fakelib": "1.5"}, True)


@pytest.mark.usefixtures("three")
def test_the_list_survives_a_wrong_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("tensorflow", "cupy", "auto:1"):
        monkeypatch.setenv("GRADFLOW_BACKEND", wrong)
        assert [info.name for info in backends() if info.available] == ["fakelib", "numba", "numpy"]
        assert not any(info.is_default for info in backends())


# ----------------------------------------------------------------------------- real packages, in processes of their own
THIRD_PARTY = """
from gradflow.backend import Backend, Plugin

class FakeLib(Backend):
    def __init__(self):
        self.name, self.device, self.kernels, self.residual_kernels, self.vjps = "fakelib", "cpu", {}, {}, {}
    def asarray(self, obj, dtype=None, copy=None): return obj
    def to_numpy(self, array): return array
    def extent(self, array): return array, 0, 0
    def synchronize(self): pass
    def code_generator(self): return None
    def versions(self): return {"fakelib": "2.0"}
    def num_threads(self): return 1
    def set_num_threads(self, n): pass

class FakeLibPlugin(Plugin):
    name, extra = "fakelib", "gpu"
    def unavailable(self): return None
    def create(self, device): return FakeLib()

plugin = FakeLibPlugin()
"""


def publish(folder: Path, name: str, source: str) -> None:
    """Lay a package down as an installer would: the module and its metadata."""
    (folder / f"{name}_plugin.py").write_text(source)
    metadata = folder / f"{name}_plugin-2.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-plugin\nVersion: 2.0\n")
    (metadata / "entry_points.txt").write_text(f"[gradflow.backends]\n{name} = {name}_plugin:plugin\n")


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k != "GRADFLOW_BACKEND"} | environment
    if "PYTHONPATH" in environment and "PYTHONPATH" in os.environ:
        variables["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=variables, check=False)


def python(code: str, **environment: str) -> str:
    """Run code in a process of its own; its last line of output, or of its traceback."""
    done = run("-c", textwrap.dedent(code), **environment)
    return (done.stdout if done.returncode == 0 else done.stderr).strip()


def test_third_party_plugin(tmp_path: Path) -> None:
    publish(tmp_path, "fakelib", THIRD_PARTY)
    code = """
        import sys, gradflow
        assert "fakelib_plugin" not in sys.modules and "importlib.metadata" not in sys.modules
        from gradflow.backend import get_backend
        print(get_backend(), get_backend().versions())
    """
    printed = python(code, PYTHONPATH=str(tmp_path), GRADFLOW_BACKEND=" FakeLib ")
    assert printed == "<backend fakelib on cpu> {'fakelib': '2.0'}"
    assert python("import sys, gradflow as gf; gf.tensor(1.0); print('fakelib_plugin' in sys.modules)") == "False"


def test_a_plugin_that_cannot_be_imported_breaks_no_other(tmp_path: Path) -> None:
    publish(tmp_path, "fakelib", "raise RuntimeError('built for another Python')")
    code = """
        import gradflow as gf
        print(gf.tensor([1.0]).backend.name)
        print(*gf.backends(), sep="\\n")
        gf.set_backend("fakelib")
    """
    done = run("-c", textwrap.dedent(code), PYTHONPATH=str(tmp_path))
    assert done.stdout.startswith("numpy\n")
    assert "fakelib: not available: its plug-in failed: RuntimeError: built for another Python\n" in done.stdout
    assert done.stderr.strip().endswith(
        'BackendUnavailableError: backend="fakelib" cannot be used on this machine.\n'
        "  why: its plug-in failed: RuntimeError: built for another Python\n"
        "  fix: pip install --force-reinstall fakelib-plugin"
    )


def test_environment_is_not_read_at_import() -> None:
    code = """
        import os, gradflow as gf
        os.environ["GRADFLOW_BACKEND"] = "NUMPY"
        print(gf.tensor([1.0]).backend.name)
        os.environ["GRADFLOW_BACKEND"] = "nonsense too late"
        print(gf.tensor([1.0]).backend.name)
    """
    assert python(code, GRADFLOW_BACKEND="nonsense") == "numpy\nnumpy"


@pytest.mark.parametrize("create", ["gf.tensor([1.0])", "gf.zeros((2,))", "gf.asarray(1.0)"])
def test_wrong_environment_stops_the_first_tensor(create: str) -> None:
    said = python(f"import gradflow as gf; {create}", GRADFLOW_BACKEND="nunpy")
    assert "UnknownBackendError: GRADFLOW_BACKEND=nunpy names no backend; did you mean 'numpy'?" in said


def test_argument_of_tensor() -> None:
    code = "import gradflow as gf; print(gf.tensor([1.0], backend='numpy').backend.name)"
    assert python(code, GRADFLOW_BACKEND="nonsense") == "numpy"


# ----------------------------------------------------------------------------------------------------- the command line
def test_info() -> None:
    done = run("-m", "gradflow", "info", GRADFLOW_BACKEND="NumPy")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("gradflow 0.")
    assert f"NumPy {np.__version__}" in lines[0]
    assert "default dtype: float32" in lines
    assert "backend: numpy on cpu, chosen by: GRADFLOW_BACKEND=NumPy" in lines
    assert any(line.startswith("  numpy: available on cpu (numpy") and line.endswith(", the default") for line in lines)


def test_info_as_json() -> None:
    found = json.loads(run("-m", "gradflow", "info", "--json").stdout)
    assert found["error"] is None
    assert found["backend"]["name"] == "numpy"
    assert found["backend"]["chosen_by"] == "default"
    assert found["backend"]["threads"] >= 1
    assert {row["name"] for row in found["backends"]} >= {"numpy", "numba", "cupy"}


def test_info_with_a_wrong_choice_still_tells_what_there_is() -> None:
    done = run("-m", "gradflow", "info", GRADFLOW_BACKEND="nunpy")
    assert done.returncode == 1
    assert "GRADFLOW_BACKEND=nunpy names no backend; did you mean 'numpy'?" in done.stdout
    assert "  numpy: available on cpu" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("inform",), ("info", "--yaml")])
def test_wrong_use_of_the_command_line(arguments: tuple[str, ...]) -> None:
    done = run("-m", "gradflow", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: python -m gradflow")


# -------------------------------------------------------------------------------------------------------------- threads
OPENBLAS = """
import ctypes, glob, os, numpy as np, gradflow as gf
(path,) = glob.glob(os.path.join(os.path.dirname(np.__file__), "..", "numpy.libs", "libscipy_openblas64_*"))
count = ctypes.CDLL(path).scipy_openblas_get_num_threads64_
"""


def test_the_number_of_threads_of_a_matrix_product_is_set_and_taken_back() -> None:
    if not list((Path(np.__file__).parent.parent / "numpy.libs").glob("libscipy_openblas64_*")):
        pytest.skip("this NumPy bundles no OpenBLAS")
    code = """
        first = count()
        gf.set_num_threads(1)
        print(count(), gf.get_num_threads())
        gf.set_num_threads(1000)
        print(count() <= os.cpu_count(), gf.get_num_threads() == count())
        gf.set_num_threads(None)
        print(count() == first)
    """
    assert python(OPENBLAS + textwrap.dedent(code)).splitlines() == ["1 1", "True True", "True"]


def test_a_library_that_cannot_be_told_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradflow_numpy import blas

    monkeypatch.setattr(blas, "_functions", lambda: None)
    with pytest.raises(BackendUnavailableError, match="finds no function that sets it") as caught:
        choice.set_num_threads(2)
    assert "OMP_NUM_THREADS=1 python" in str(caught.value)
    assert choice.get_num_threads() == choice.usable_cpus()


@pytest.mark.parametrize("wrong", [0, -1])
def test_less_than_one_thread_is_an_error(wrong: int) -> None:
    with pytest.raises(ArgumentError, match="it is at least 1"):
        choice.set_num_threads(wrong)


@pytest.mark.usefixtures("three")
def test_the_number_of_threads_is_the_current_backends() -> None:
    with use_backend("fakelib"):
        assert choice.get_num_threads() == 3


# ------------------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize("text", ["1", "true", " Yes", "ON "])
def test_flags_that_are_true(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GRADFLOW_FLAG", text)
    assert config.env_flag("GRADFLOW_FLAG", default=False) is True


@pytest.mark.parametrize("text", ["0", "false", "No ", " OFF", "", " "])
def test_flags_that_are_false(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("GRADFLOW_FLAG", text)
    assert config.env_flag("GRADFLOW_FLAG", default=True) is False


def test_flags_that_are_unset_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRADFLOW_FLAG", raising=False)
    assert config.env_flag("GRADFLOW_FLAG", default=True) is True
    assert config.env_flag("GRADFLOW_FLAG", default=False) is False
    monkeypatch.setenv("GRADFLOW_FLAG", "flase")
    with pytest.raises(ArgumentError, match=r"GRADFLOW_FLAG='flase' is not a boolean") as caught:
        config.env_flag("GRADFLOW_FLAG", default=True)
    assert "1/true/yes/on or 0/false/no/off" in str(caught.value)


def test_default_dtype() -> None:
    assert config.get_default_dtype() == np.float32
    try:
        for dtype in (np.float64, "float64", np.dtype("f8"), float):
            config.set_default_dtype(dtype)
            assert config.get_default_dtype() == np.float64
            config.set_default_dtype("float32")
        for wrong in (None, "float16", np.int64, ">f4", "nonsense", complex, object()):
            with pytest.raises(DTypeError, match="cannot be the default dtype"):
                config.set_default_dtype(wrong)
        assert config.get_default_dtype() == np.float32
    finally:
        config.set_default_dtype(np.float32)


# ----------------------------------------------------------------------------------------------------------- processors
def lay(root: Path, files: dict[str, str]) -> str:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return str(root)


V1 = "4:memory:/\n3:cpu,cpuacct:/job/7\n2:cpuset:/\n"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, float("inf")),
        ({"proc/self/cgroup": "0::/"}, float("inf")),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, float("inf")),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}, 2.5),
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "300000 100000"}, 3.0),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "300000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
                "sys/fs/cgroup/cpu.max": "150000 100000",
            },
            1.5,
        ),
        ({"proc/self/cgroup": "0::/../../x", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        ({"proc/self/cgroup": V1, "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1"}, float("inf")),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/job/7/cpu.cfs_quota_us": "400000\n",
                "sys/fs/cgroup/cpu/job/7/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            4.0,
        ),
    ],
)
def test_cgroup_quota(tmp_path: Path, files: dict[str, str], quota: float) -> None:
    assert choice._cgroup_quota(lay(tmp_path, files)) == quota


@pytest.mark.parametrize(("quota", "expected"), [(float("inf"), 8), (16.0, 8), (2.9, 2), (0.3, 1)])
def test_usable_cpus(monkeypatch: pytest.MonkeyPatch, quota: float, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(choice, "_cgroup_quota", lambda root: quota)
    assert choice.usable_cpus() == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert choice.usable_cpus() == 1
