"""Poincaré layers: convolution, batch norm and skip connection in the ball of curvature −c, |x| < 1/√c.

``ball`` has the geometry, ``explicit`` the same core maps with derivatives by hand. The layers pass feature maps on
as tangent vectors at the origin, so that a ReLU, an average or a linear read-out can stand between them: each enters
the ball by exp₀ and leaves it by log₀.

van Spengler, Berkhout, Mettes, 2023, arXiv:2303.14027.
"""

from assay.nn.residual.poincare.batch_norm import PoincareBatchNorm
from assay.nn.residual.poincare.linear import PoincareConv2d, PoincareLinear
from assay.nn.residual.poincare.skip import poincare_skip

__all__ = ["PoincareBatchNorm", "PoincareConv2d", "PoincareLinear", "poincare_skip"]
