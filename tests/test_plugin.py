"""The pytest plug-in, as a user's own test-suite meets it."""

from __future__ import annotations

import pytest

SUITE = """
    import numpy as np
    import gradflow as gf

    def test_square(gradcheck):
        assert gradcheck(gf.square, np.ones(3), order=2).comparisons == 8

    def test_names(gradflow_backend):
        assert gf.tensor([1.0]).backend is gradflow_backend
        print("on", gradflow_backend.name)

    def test_without():
        assert True
"""


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makepyfile(SUITE)
    return pytester


def run(suite: pytest.Pytester, *options: str) -> pytest.RunResult:
    return suite.runpytest_inprocess("-p", "no:cacheprovider", *options)


def run_apart(suite: pytest.Pytester, *options: str) -> pytest.RunResult:
    """In a process of its own, which has imported nothing and keeps no settings."""
    return suite.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_a_suite_without_options(suite: pytest.Pytester) -> None:
    result = run(suite, "-v")
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_square?numpy? PASSED*", "*test_without PASSED*"])


def test_each_backend_gets_a_run(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        """
        from gradflow.backend import _by_text
        from gradflow.testing import without_kernels
        _by_text["plain"] = without_kernels("numpy")
        """
    )
    result = run(suite, "-s", "--gradflow-backends", "numpy, plain")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines_random(["*on numpy*", "*on rules-only*"])


def test_with_hypothesis_and_with_a_backend_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import numpy as np
        import pytest
        import gradflow as gf
        from gradflow.testing import arrays, shapes, without_kernels
        from hypothesis import given, settings

        @settings(max_examples=3, deadline=None)
        @given(arrays(shapes()))
        def test_drawn(gradcheck, gradflow_backend, x):
            assert gf.get_backend() is gradflow_backend
            gradcheck(gf.square, x)

        @pytest.mark.parametrize("gradflow_backend", [without_kernels("numpy")], indirect=True)
        def test_own(gradflow_backend):
            assert gf.tensor([1.0]).backend is without_kernels("numpy")

        def test_after():
            assert gf.get_backend().name == "numpy"
        """
    )
    run(pytester, "--gradflow-backends", "numpy,numpy").assert_outcomes(passed=3)


def test_a_wrong_derivative_fails_and_says_how_to_see_it_again(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import numpy as np
        import gradflow as gf

        @gf.custom_vjp
        def twice(x):
            return x * 2
        twice.defvjp(lambda x: (x * 2, None), lambda _, g: (g * 3,))

        def test_twice(gradcheck):
            gradcheck(twice, np.array([1.0]))
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*WrongDerivativeError: the first derivative (reverse) of twice*"])
    result.stdout.fnmatch_lines(["*testing.gradcheck(twice, np.array([[]1.[]], dtype='float64'))*"])


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("numpi", "*--gradflow-backends*numpi*did you mean 'numpy'*"),
        (",", "*--gradflow-backends: it names no backend*"),
    ],
)
def test_names_that_are_wrong_stop_the_run(suite: pytest.Pytester, names: str, text: str) -> None:
    result = run(suite, "--gradflow-backends", names)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([text])


def test_profiles(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from hypothesis import settings

        def test_profile():
            print(settings.default.max_examples, settings.default.deadline, settings.default.derandomize)
        """
    )
    for profile, shown in (("dev", "30 None False"), ("ci", "100 None True")):
        result = run_apart(pytester, "-s", f"--hypothesis-profile={profile}")
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines([f"*{shown}*"])


def test_it_imports_no_hypothesis(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_modules():
            assert "gradflow.testing.plugin" in sys.modules
            assert "hypothesis" not in sys.modules
            assert "gradflow.testing.strategies" not in sys.modules
        """
    )
    run_apart(pytester).assert_outcomes(passed=1)


def test_the_help_tells_the_option(pytester: pytest.Pytester) -> None:
    run(pytester, "--help").stdout.fnmatch_lines(["*--gradflow-backends=NAMES*"])
