"""What the kernels are compiled to for a GPU, which takes none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from assay.nn.kernels import rms_norm, seednorm, sigmoid_gate, tiles

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", int: "i32", float: "fp32"}
FLOAT, BRAIN = torch.float32, torch.bfloat16
Launch = tuple[JITFunction, tuple[Any, ...], dict[str, Any]]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    """The launches that operators ask for; nothing is launched."""
    launches: list[Launch] = []

    class Noted:
        def __init__(self, kernel: JITFunction) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *arguments, **constants: launches.append((self.kernel, arguments, constants))

    for module in (rms_norm, seednorm, sigmoid_gate):
        monkeypatch.setattr(module, "wrap_triton", Noted)
    return launches


def compiled(launch: Launch, capability: int) -> Any:
    kernel, arguments, constants = launch
    options = {"num_warps": constants.pop("num_warps")}
    signature = dict.fromkeys(kernel.arg_names, "constexpr")
    for name, value in zip(kernel.arg_names, arguments, strict=False):
        signature[name] = TYPES[value.dtype if isinstance(value, Tensor) else type(value)]
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def launch_all(x: Tensor, gain: Tensor) -> None:
    hidden = x.shape[-1]
    y, scale = rms_norm.forward(x, gain, 1e-6)
    rms_norm.backward(y, x, gain, scale)
    y, scale, gate = seednorm.forward(x, gain, gain, gain, 2, 1e-6)
    seednorm.backward(y, x, gain, gain, gain, scale, gate)
    for gates in (1, hidden):
        z = x[..., :gates]
        sigmoid_gate.backward(sigmoid_gate.forward(x, z), x, z)


@pytest.mark.parametrize("x_type", [FLOAT, BRAIN])
def test_kernels_compile_without_atomics(
    launched: list[Launch], x_type: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiles, "FEATURES", 256)
    with torch.device("meta"):
        launch_all(torch.empty(10, 48, dtype=x_type), torch.empty(48))
    assert len(launched) == 8
    for launch in launched:
        code = compiled(launch, 80).asm["ptx"]
        assert "st.global" in code
        assert "atom." not in code
        assert "red.global" not in code


def test_torch_compile_sees_the_kernel_and_not_a_black_box(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.backends.common import aot_autograd

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 80, 32)

    class Enough(Exception):
        pass

    operations: list[str] = []

    def note(graph: torch.fx.GraphModule, inputs: Any) -> None:
        operations.extend(str(node.target) for node in graph.graph.nodes)
        raise Enough

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    function = torch.compile(rms_norm.rms_norm, backend=aot_autograd(fw_compiler=note), fullgraph=True)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="Enough"):
        function(torch.randn(4, 33, requires_grad=True), torch.ones(33, requires_grad=True), 1e-6)
    assert "triton_kernel_wrapper_functional" in operations
    assert not any("assay" in operation for operation in operations)
