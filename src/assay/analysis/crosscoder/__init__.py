"""Crosscoders: one sparse dictionary for the activations of two models, and which of its latents belong to one only.

    f = relu(Σₘ xₘ Eₘ + b),  x̂ₘ = f Dₘ + cₘ,  sⱼ = fⱼ (‖D₀ⱼ‖ + ‖D₁ⱼ‖)
    l1:          mean ‖xₘ − x̂ₘ‖ + μ mean Σⱼ sⱼ
    batch-topk:  mean ‖xₘ − x̂ₘ‖ + α aux,  keeping the k · batch largest s of a batch; for use, those above a threshold
    Δⱼ = ½ (1 + (‖D₁ⱼ‖ − ‖D₀ⱼ‖) / max(‖D₀ⱼ‖, ‖D₁ⱼ‖)):  second only from 0.9, first only to 0.1, shared 0.4 .. 0.6

L1 shrinks the decoder of the model that uses a latent less, so that shared latents pass for one model's own. Latent
scaling tells: with d the latent's direction in the model whose own it seems, β(Y) = argmin_b Σᵢ ‖Yᵢ − b fᵢⱼ d‖², and

    ν_error = β(the other's error without latent j) / β(the own one's),  ν_reconstruction = β(x̂ other) / β(x̂ own)

A latent is one model's own where ν_error < 0.2 and ν_reconstruction < 0.5. Minder, Dumas, Juang, Chughtai, Nanda,
2025, arXiv:2504.02922.
"""

from __future__ import annotations

from assay.analysis.crosscoder.activations import Pair, residual_pairs, scales_of
from assay.analysis.crosscoder.dictionary import Crosscoder, Kind, batch_top_k
from assay.analysis.crosscoder.scaling import Latents, Scaling, read_latents
from assay.analysis.crosscoder.training import train

__all__ = [
    "Crosscoder",
    "Kind",
    "Latents",
    "Pair",
    "Scaling",
    "batch_top_k",
    "read_latents",
    "residual_pairs",
    "scales_of",
    "train",
]
