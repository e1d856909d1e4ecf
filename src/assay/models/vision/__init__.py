"""Networks for images, by name.

A network is constructed with what it asks for of ``(image_size, channels, num_classes)`` and its own options, and
maps images ``[batch, channels, height, width]`` to logits ``[batch, num_classes]``::

    networks.build("poincare-resnet", {"depth": 32}, image_size=32, channels=3, num_classes=10)
"""

from __future__ import annotations

from torch import nn

from assay.registry import Registry

networks: Registry[nn.Module] = Registry("network", __name__)
