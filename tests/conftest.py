"""Hypothesis profiles, the demand for oracles, and a seal against tests that leak process-wide settings."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from gradflow import backend, config
from gradflow.primitive import _NAMESPACES, REGISTRY, _forget
from gradflow.tensor import OPS
from gradflow.testing.plugin import register_profiles

collect_ignore = ["mutation"]  # a program beside the suite: python -m tests.mutation
register_profiles()
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


def pytest_configure() -> None:
    """With GRADFLOW_REQUIRE_ORACLES=1 fail at once where tests would skip for want of an oracle."""
    if config.env_flag("GRADFLOW_REQUIRE_ORACLES", default=False):
        for oracle in ("torch", "jax"):
            try:
                __import__(oracle)
            except ImportError as error:
                raise pytest.UsageError(f"GRADFLOW_REQUIRE_ORACLES is set, but {oracle} is missing: {error}") from error


def registry() -> dict[str, tuple[object, ...]]:
    """Each primitive's composition and rules."""
    return {name: (primitive.impl, *primitive.rules) for name, primitive in REGISTRY.items()}


@pytest.fixture(autouse=True)
def _sealed() -> Iterator[None]:
    """Fail the test that leaves a process-wide setting changed, not the unlucky one after it."""
    dtype, registered = config.get_default_dtype(), registry()
    yield
    left = []
    if registry() != registered:
        left.append("the registry of primitives changed")
    if config.get_default_dtype() != dtype:
        config.set_default_dtype(dtype)
        left.append("the default dtype changed")
    if backend._current_source == "set_backend()":
        backend.set_backend(None)
        left.append("set_backend() in force")
    assert not left, f"the test left {' and '.join(left)}"


@pytest.fixture
def visitors() -> Iterator[None]:
    """Primitives that the test declares leave the registry with it; the others have their compositions again."""
    residents = {name: primitive.impl for name, primitive in REGISTRY.items()}
    yield
    for name, impl in residents.items():
        if REGISTRY[name].impl is not impl:
            REGISTRY[name].impl = impl
            _forget(name)
    for name in REGISTRY.keys() - residents.keys():
        del REGISTRY[name]
        for xp in (OPS, *_NAMESPACES.values()):
            for found in [found for found in vars(xp) if found.startswith(name)]:
                delattr(xp, found)
