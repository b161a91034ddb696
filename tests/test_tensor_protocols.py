"""How a Tensor meets the rest of Python: devices, DLPack, the array namespace, representations, the command line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import gradflow as gf
from gradflow.__main__ import main
from gradflow.backend import resolve
from gradflow.compiler.trace import trace
from gradflow.errors import ArgumentError, DTypeError, GraphError, TracedValueError, UnknownBackendError
from gradflow.primitive import REGISTRY, defimpl, defvjp, namespace, primitive
from gradflow.testing import without_kernels

visiting = pytest.mark.usefixtures("visitors")


# ---------------------------------------------------------------- other libraries
def test_a_tensor_says_where_it_lives() -> None:
    x = gf.ones(3)
    assert x.device == "cpu" == x.backend.device
    assert x.__array_namespace__() is gf
    assert x.__dlpack_device__() == np.ones(3).__dlpack_device__()
    assert np.shares_memory(np.from_dlpack(x), x.data)


def test_dlpack_shares_unless_a_copy_is_asked_for() -> None:
    array = np.arange(3.0)
    assert np.shares_memory(gf.from_dlpack(array).data, array)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":  # its from_dlpack knows no options before
        assert np.shares_memory(gf.from_dlpack(array, device="cpu").data, array)
        assert np.shares_memory(gf.from_dlpack(array, copy=False).data, array)
        copied = gf.from_dlpack(array, copy=True)
        assert copied.tolist() == array.tolist() and not np.shares_memory(copied.data, array)


def test_asarray_reads_a_device_as_one_of_the_backend() -> None:
    array, plain = np.arange(3), without_kernels("numpy")
    for device in (None, "cpu"):
        assert gf.asarray(array, device=device).backend.name == "numpy"
        assert gf.asarray(array, device=device, backend=plain).backend is plain
    assert gf.asarray(gf.tensor(array, backend=plain), device="cpu").backend is plain
    for wrong, error in (("nonsense", ArgumentError), (plain, DTypeError)):
        with pytest.raises(error):
            gf.asarray(array, device=wrong)


def test_a_tensor_crosses_the_host_only_where_it_changes_the_backend() -> None:
    class Device(type(without_kernels("numpy"))):
        """A backend that counts what leaves its device."""

        left = 0

        def to_numpy(self, array: np.ndarray) -> np.ndarray:
            self.left += 1
            return super().to_numpy(array)

    device = Device(resolve("numpy"))
    x = gf.tensor([1.0, 2.0], backend=device)
    assert gf.tensor(x).backend is device and gf.asarray(x, copy=True).backend is device
    assert gf.tensor(x, dtype=gf.float64, backend=device).backend is device
    assert device.left == 0
    assert gf.tensor(x, backend="numpy").tolist() == [1.0, 2.0] and device.left == 1
    assert gf.asarray(x, backend="numpy").backend.name == "numpy" and device.left == 2
    assert x.to("numpy").backend.name == "numpy" and device.left == 3


def test_a_condition_may_be_a_number() -> None:
    x, y = gf.tensor([1.0, 2.0]), gf.tensor([3.0, 4.0])
    for condition in (True, False, 1, 0, 0.5, 0.0):
        assert gf.where(condition, x, y).tolist() == np.where(condition, x.data, y.data).tolist()


def test_an_empty_list_selects_nothing() -> None:
    x = gf.ones((2, 3), requires_grad=True)
    assert x[[]].shape == (0, 3) and x[:, []].shape == (2, 0)
    x[[]].sum().backward()
    assert x.grad.tolist() == np.zeros((2, 3)).tolist()


def test_a_recorded_write_into_what_a_kernel_reshaped_is_no_write_into_a_view() -> None:
    """The array of linear's result has a base, as its kernel works on rows; nobody else has that memory."""
    x, weight, bias = gf.ones((2, 2, 3)), gf.ones((2, 3), requires_grad=True), gf.ones(2, requires_grad=True)
    y = gf.linear(x, weight, bias)
    y[0] = 0.0
    y.sum().backward()
    assert bias.grad.tolist() == [2.0, 2.0] and weight.grad.tolist() == [[2.0] * 3] * 2


# ---------------------------------------------------------------- primitives
def test_a_primitive_is_shown_by_its_name() -> None:
    assert repr(REGISTRY["add"]) == "<primitive add>"


def test_a_namespace_names_what_it_lacks() -> None:
    with pytest.raises(AttributeError, match="offers no 'nonsense' and gradflow cannot compose it"):
        namespace("numpy").nonsense  # noqa: B018


@visiting
def test_a_variadic_operand_without_a_rule_is_refused() -> None:
    @primitive("numeric")
    def weighted_total(x: Any, /, *others: Any) -> Any: ...

    defimpl(weighted_total, lambda xp, x, *others: sum((xp.square(o) for o in others), x))
    defvjp(weighted_total, x=lambda xp, g: g)
    x, y = gf.tensor(1.0, requires_grad=True), gf.tensor(2.0)
    out = weighted_total(x, y, y)
    assert out.item() == 9.0
    out.backward()
    assert x.grad.item() == 1.0
    with pytest.raises(GraphError, match="weighted_total has no derivative rule for `others`"):
        weighted_total(x, y, y.requires_grad_())
    with gf.no_grad():
        assert weighted_total(x, y, y).item() == 9.0


@visiting
def test_a_kernels_own_error_is_not_dressed_up() -> None:
    @primitive("float")
    def broken_kernel(x: Any, /) -> Any: ...

    defimpl(broken_kernel, lambda xp, x: {}["a key of its own"])
    with pytest.raises(KeyError, match="a key of its own"):
        broken_kernel(gf.ones(2))


def test_a_trace_in_a_trace_refuses_to_read_the_outer_ones_values() -> None:
    def outer(x: gf.Tensor) -> gf.Tensor:
        trace(lambda y: y * float(x), gf.tensor(1.0))
        return x

    with pytest.raises(TracedValueError, match="of a traced value"):
        trace(outer, gf.tensor(2.0))


# ---------------------------------------------------------------- the command line
def test_info_says_the_same_in_words_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    words = capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"gradflow {gf.__version__}, Python {found['python']}, NumPy {np.__version__}" in words
    assert f"usable CPUs: {found['usable_cpus']}" in words and f"threads: {found['backend']['threads']}" in words
    assert all(f"  {row['text']}" in words for row in found["backends"])


def test_info_of_a_choice_that_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse() -> Any:
        raise UnknownBackendError("nunpy names no backend")

    monkeypatch.setattr("gradflow.__main__.get_backend", refuse)
    assert main(["info"]) == 1
    assert "backend: none. nunpy names no backend" in capsys.readouterr().out


def test_one_element_without_axes() -> None:
    assert gf.ones((1, 1)).reshape().shape == ()
