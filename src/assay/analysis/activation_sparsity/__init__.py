"""Activation sparsity at a given rise of perplexity, and the laws that it follows in data and shape.

Luo, Song, Han, Chen, Xiao, Meng, Deng, Wei, Liu, Sun, 2024, arXiv:2411.02335.
"""

from assay.analysis.activation_sparsity.laws import DataLaw, WidthDepthLaw, fit_data, fit_width_depth
from assay.analysis.activation_sparsity.thresholds import (
    ActivationSparsity,
    LayerSparsity,
    SparseRun,
    TailError,
    activation_sparsities,
    activation_sparsity,
)

__all__ = [
    "ActivationSparsity",
    "DataLaw",
    "LayerSparsity",
    "SparseRun",
    "TailError",
    "WidthDepthLaw",
    "activation_sparsities",
    "activation_sparsity",
    "fit_data",
    "fit_width_depth",
]
