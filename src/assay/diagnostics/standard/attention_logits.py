"""The largest attention logit, and the entropy of attention.

    largest logit      max over queries i and keys j ≤ i of q_i·k_j / √d
    entropy share      mean over queries i ≥ 1 of H(w_i) / ln(i + 1)

Logits that grow without bound make attention one-hot and training unstable; Kimi K2 clips queries and keys where one
passes 100 (Kimi Team, 2025, arXiv:2507.20534). That attention whose entropy collapses goes with unstable training:
Zhai et al., 2023, arXiv:2303.06296.
"""

from __future__ import annotations

import torch

from assay.diagnostics import Diagnostic, Finding, Result, diagnostics
from assay.diagnostics.events import Attention
from assay.diagnostics.means import Means
from assay.diagnostics.subject import Subject

LARGEST = 100.0
COLLAPSED = 0.05


@diagnostics.register("attention-logits")
class AttentionLogits(Diagnostic):
    """``largest_logit`` (of all heads), ``entropy`` (mean share over heads), ``lowest_entropy`` (of a layer)."""

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self.means = Means()
        self.largest: dict[int, torch.Tensor] = {}

    def on_attention(self, attention: Attention) -> None:
        layer, top = attention.layer, attention.largest_logit.amax(0).cpu()
        self.largest[layer] = torch.maximum(self.largest[layer], top) if layer in self.largest else top
        most = torch.arange(1, attention.entropy.shape[-1] + 1, device=attention.entropy.device).log()
        shares = attention.entropy[..., 1:] / most[1:]
        self.means.add("entropy", layer, shares.mean(-1))

    def result(self) -> Result | None:
        if not self.largest:
            return None
        layers = sorted(self.largest)
        largest = [self.largest[layer] for layer in layers]
        entropies = self.means.by_layer("entropy")
        means = [entropy.mean().item() for entropy in entropies]
        top = torch.cat(largest).max().item()
        found = []
        if not top < LARGEST:
            where = [
                {"layer": layer, "head": head, "logit": round(value, 2)}
                for layer, row in zip(layers, largest, strict=True)
                for head, value in enumerate(row.tolist())
                if not value < LARGEST
            ]
            found.append(
                Finding(
                    "attention-logits",
                    "logit-growth",
                    f"the largest attention logit is {top:.3g}; {len(where)} heads pass {LARGEST:.0f}",
                    top,
                    LARGEST,
                    "the limit to which Kimi K2 clips, Kimi Team, 2025, arXiv:2507.20534",
                    "attention is close to one-hot there and its gradient vanishes; 16 bits are coarse at such "
                    "sizes, and training tends to spike",
                    tuple(sorted(where, key=lambda place: -place["logit"])),
                    top / LARGEST if top == top else float("inf"),
                )
            )
        lowest = min(means)
        if lowest < COLLAPSED:
            found.append(
                Finding(
                    "attention-logits",
                    "logit-growth",
                    f"the attention of a layer has {lowest:.1%} of the entropy of uniform attention",
                    lowest,
                    COLLAPSED,
                    "chosen here; that entropy collapse goes with unstable training: Zhai et al., 2023, "
                    "arXiv:2303.06296",
                    "each query looks at one key only; if that is not the first token, the logits have run away",
                    tuple({"layer": i, "entropy": e} for i, e in zip(layers, means, strict=True) if e < COLLAPSED),
                    COLLAPSED / max(lowest, 1e-12),
                )
            )
        return Result(
            {"largest_logit": top, "entropy": sum(means) / len(means), "lowest_entropy": lowest},
            {
                "largest_logit": [row.tolist() for row in largest],
                "entropy": [entropy.tolist() for entropy in entropies],
            },
            found,
        )
