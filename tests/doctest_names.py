"""Names that every doctest may use without importing them, wherever it stands.

A plug-in module (pyproject.toml names it) and not a conftest.py, as a conftest would have to stand beside the doctests
and so ship with the package.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session", autouse=True)
def _doctest_names(doctest_namespace: dict[str, Any]) -> None:
    import gradflow

    doctest_namespace.update(gf=gradflow, np=np)
