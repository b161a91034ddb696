"""The pytest plug-in: a fixture for gradient checks, the choice of backends, Hypothesis profiles.

It is found through the entry point group `pytest11`, so installing gradflow is enough; `-p no:gradflow` leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from gradflow.backend import Backend, get_backend, resolve, use_backend

if TYPE_CHECKING:
    from gradflow.testing.derivatives import Checked

OPTION = "--gradflow-backends"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that chooses backends."""
    parser.getgroup("gradflow").addoption(
        OPTION,
        metavar="NAMES",
        default=None,
        help="run the tests that use the fixtures gradcheck or gradflow_backend once on each of these backends: "
        "names separated by commas, such as numpy,numba; by default the chosen backend",
    )


@pytest.hookimpl(tryfirst=True)  # before Hypothesis loads the profile that --hypothesis-profile names
def pytest_configure(config: pytest.Config) -> None:
    """Check the names of backends at once, and have the Hypothesis profiles ready where one is asked for."""
    try:
        chosen_backends(config)
    except (ImportError, ValueError) as error:
        raise pytest.UsageError(f"{OPTION}: {error}") from error
    if config.getoption("--hypothesis-profile", default=None) in PROFILES:
        register_profiles()


def chosen_backends(config: pytest.Config) -> list[Backend]:
    """The backends that the option names, or the one that is chosen anyway."""
    text: str | None = config.getoption(OPTION)
    names = [] if text is None else [name for name in text.split(",") if name.strip()]
    if text is not None and not names:
        raise ValueError("it names no backend; one is numpy")
    return list(dict.fromkeys(resolve(name.strip()) for name in names))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what depends on `gradflow_backend` once for each backend, unless the test chooses for itself."""
    own = any("gradflow_backend" in str(mark.args[:1]) for mark in metafunc.definition.iter_markers("parametrize"))
    if "gradflow_backend" in metafunc.fixturenames and not own:
        chosen = chosen_backends(metafunc.config) or [get_backend()]
        metafunc.parametrize("gradflow_backend", chosen, ids=lambda b: b.name, indirect=True, scope="session")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Make the backend of a test the current one: by a hook, as Hypothesis allows fixtures of the session alone."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if isinstance(chosen := params.get("gradflow_backend"), str | Backend):
        with use_backend(chosen):
            return (yield)
    return (yield)


@pytest.fixture(scope="session")
def gradflow_backend(request: pytest.FixtureRequest) -> Backend:
    """The backend of the tensors that a test makes: one run of the test for each that --gradflow-backends names."""
    return resolve(request.param)


@pytest.fixture(scope="session")
def gradcheck(gradflow_backend: Backend) -> Callable[..., Checked]:
    """`gradflow.testing.check_grads` as `gradcheck(f, *inputs, order=1, **options)`, on each chosen backend."""
    from gradflow.testing.derivatives import check_grads

    def check(f: Callable[..., Any], *inputs: Any, **options: Any) -> Checked:
        return check_grads(f, inputs, **options)

    return check


PROFILES: dict[str, dict[str, Any]] = {
    "dev": {"max_examples": 30, "derandomize": False},
    "ci": {"max_examples": 100, "derandomize": True},
}


def register_profiles() -> None:
    """Register the Hypothesis profiles `dev` (few examples) and `ci` (more, the same every time).

    Neither has a deadline, since a first call compiles, and a failure prints the line that reproduces it.
    """
    import hypothesis

    register = partial(hypothesis.settings.register_profile, deadline=None, print_blob=True)
    for name, settings in PROFILES.items():
        register(name, **settings)
