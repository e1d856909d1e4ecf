"""When a kernel is called, and that all works without triton."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from assay.nn import kernels
from assay.nn.attention.gated_attention import GatedAttention
from assay.nn.norm.rms_norm import RMSNorm
from assay.nn.norm.seednorm import SeeDNorm
from assay.nn.position import Positions

BIG = (4, 256, 1024)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors are made on a GPU that is not there, and have no values."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(kernels, "_runs_on", lambda device: True)
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        yield


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were asked for; in their place ``torch.zeros_like`` of their first argument."""
    names: list[str] = []

    def note(name: str) -> Callable[..., Tensor]:
        names.append(name)
        return lambda x, *_: torch.zeros_like(x)

    monkeypatch.setattr(kernels, "_kernel", note)
    return names


@pytest.mark.usefixtures("gpu")
class TestExpectedToWin:
    def test_on_a_gpu(self) -> None:
        x = torch.empty(BIG)
        assert kernels.expected_to_win(x)
        assert kernels.expected_to_win(x.bfloat16(), torch.empty(1024), torch.empty(1024).half())

    def test_not_on_a_cpu(self) -> None:
        assert not kernels.expected_to_win(torch.empty(BIG, device="cpu"))
        assert not kernels.expected_to_win(torch.empty(BIG), torch.empty(1024, device="cpu"))

    def test_not_on_another_gpu_than_the_current_one(self) -> None:
        assert not kernels.expected_to_win(torch.empty(BIG, device="cuda:1"))

    def test_not_on_a_gpu_that_triton_does_not_serve(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "_runs_on", lambda device: False)
        assert not kernels.expected_to_win(torch.empty(BIG))

    def test_from_a_million_features_in_rows_of_at_most_8192(self) -> None:
        assert not kernels.expected_to_win(torch.empty(2**20))
        assert kernels.expected_to_win(torch.empty(128, 8192))
        assert not kernels.expected_to_win(torch.empty(127, 8192))
        assert not kernels.expected_to_win(torch.empty(999, 8193))

    def test_not_in_float64(self) -> None:
        assert not kernels.expected_to_win(torch.empty(BIG, dtype=torch.float64))
        assert not kernels.expected_to_win(torch.empty(BIG), torch.empty(1024, dtype=torch.float64))

    def test_not_under_a_transformation_of_functions(self) -> None:
        found = []

        def function(x: Tensor) -> Tensor:
            found.append(kernels.expected_to_win(x))
            return x.sum()

        x = torch.empty(2, *BIG)
        torch.func.vmap(function)(x)
        torch.func.jvp(function, (x,), (x,))
        assert found == [False, False]

    def test_not_while_compiling(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not kernels.expected_to_win(torch.empty(BIG))


def gated(granularity: Any, **options: Any) -> Callable[[Tensor], Tensor]:
    attention = GatedAttention(12, 3, 3, 4, 0, RMSNorm, granularity=granularity, **options)
    return lambda x: attention(x, Positions())


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: RMSNorm(12), ["rms_norm"]),
        (lambda: RMSNorm(12, gain=False), []),
        (lambda: SeeDNorm(12, num_heads=4), ["seednorm"]),
        (lambda: gated("elementwise"), ["sigmoid_gate"]),
        (lambda: gated("headwise"), ["sigmoid_gate"]),
        (lambda: gated("headwise", activation="silu"), []),
        (lambda: gated("headwise", form="additive"), []),
    ],
    ids=["rms-norm", "without gain", "seednorm", "elementwise", "headwise", "silu", "additive"],
)
def test_modules_call_their_kernels(
    monkeypatch: pytest.MonkeyPatch, called: list[str], make: Callable[[], Any], expected: list[str]
) -> None:
    module, x = make(), torch.randn(2, 5, 12)
    y = module(x)
    assert called == []
    monkeypatch.setattr(kernels, "expected_to_win", lambda *tensors: True)
    instead = module(x)
    assert called == expected
    assert instead.shape == y.shape
    assert instead.any() == (not expected)


@pytest.mark.usefixtures("gpu")
def test_operators_know_what_they_return() -> None:
    """Shapes and types without values, of what is not contiguous, too."""
    pytest.importorskip("triton")
    from assay.nn.kernels.rms_norm import rms_norm
    from assay.nn.kernels.seednorm import seednorm
    from assay.nn.kernels.sigmoid_gate import sigmoid_gate

    x = torch.empty_strided((4, 6, 36), (40, 160, 1), dtype=torch.bfloat16)
    gain = torch.empty(36)
    results = [
        (rms_norm(x, gain, 1e-6), torch.float32),
        (rms_norm(x, gain.bfloat16(), 1e-6), torch.bfloat16),
        (seednorm(x, gain, gain, gain, 3, 1e-6), torch.bfloat16),
        (sigmoid_gate(x, x.narrow(-1, 0, 1)), torch.bfloat16),
        (sigmoid_gate(x, x.float()), torch.float32),
    ]
    for y, dtype in results:
        assert (y.shape, y.dtype, y.device) == ((4, 6, 36), dtype, x.device)
        assert y.is_contiguous()


LAZY = """
import sys
{before}
from assay.nn.attention import gated_attention
from assay.nn.mixer import mixers
from assay.nn.norm import norms
assert "rms-norm" in norms and "gated-attention" in mixers
loaded = [name for name in sys.modules if name.startswith("assay.nn.kernels.") and sys.modules[name]]
assert loaded == [], loaded
assert sys.modules.get("triton") is None
{after}
"""

WITHOUT = """
import torch
from assay.nn import kernels
torch.cuda.get_device_capability = lambda device: (9, 0)
assert not kernels._runs_on(0)
x = torch.randn(3, 8, requires_grad=True)
for name in ("rms-norm", "seednorm"):
    norms.build(name, hidden_size=8)(x).sum().backward()
gated_attention.sigmoid_gate(x, x).sum().backward()
assert x.grad.isfinite().all()
"""


def test_components_are_found_without_importing_triton() -> None:
    subprocess.run([sys.executable, "-c", LAZY.format(before="", after="")], check=True)


def test_all_is_plain_without_triton() -> None:
    """A finder that finds no triton, as on a machine that lacks it."""
    hide = (
        "import importlib.abc, importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name.split('.')[0] == 'triton' else real(name, *a)\n"
        "sys.modules['triton'] = None"
    )
    subprocess.run([sys.executable, "-c", LAZY.format(before=hide, after=WITHOUT)], check=True)


@pytest.mark.parametrize("make", [RMSNorm, SeeDNorm])
def test_compiled_on_a_cpu_as_eager(make: Callable[[int], nn.Module]) -> None:
    norm, x = make(48), torch.randn(7, 48, requires_grad=True)
    results = []
    for function in (norm, torch.compile(norm, fullgraph=True, backend="aot_eager")):
        y = function(x)
        results.append([y.detach(), *torch.autograd.grad(y.square().mean(), (x, *norm.parameters()))])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager)
