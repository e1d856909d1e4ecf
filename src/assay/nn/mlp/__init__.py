"""MLPs: the position-wise half of a layer, constructed with ``(hidden_size, intermediate_size)``.

``expansion`` of a class is its usual ratio of intermediate to hidden size.
"""

from __future__ import annotations

from torch import nn

from assay.registry import Registry

mlps: Registry[nn.Module] = Registry("mlp", __name__)
