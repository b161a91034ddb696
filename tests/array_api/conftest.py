"""The oracle speaks the version of the standard that gradflow follows, in these tests alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import gradflow as gf


@pytest.fixture(autouse=True, scope="module")
def _version() -> Iterator[None]:
    oracle = pytest.importorskip("array_api_strict")
    with oracle.ArrayAPIStrictFlags(api_version=gf.__array_api_version__):
        yield
