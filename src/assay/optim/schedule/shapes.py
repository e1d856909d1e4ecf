"""Shapes of a decay: how a rate falls from ``start`` to ``end`` while u goes from 0 to 1.

    linear        start + (end − start) u
    cosine        end + (start − end) ½(1 + cos πu)
    1-sqrt        start + (end − start) √u
    inverse       1 / ((1 − u) / start + u / end)
    inverse-sqrt  start + (end − start) h(u) / h(1),   h(u) = 1/√(1 + 10u) − 1
    exponential   start (end / start)^u

Cosine: Loshchilov, Hutter, 2016, arXiv:1608.03983. 1-sqrt: Hägele et al., 2024, arXiv:2405.18392. Inverse: Wen et
al., 2024, arXiv:2410.05192. Exponential: Hu et al., 2024, arXiv:2404.06395. Inverse-sqrt: Ibrahim et al., 2024,
arXiv:2403.08763, where 10 is our choice of a steepness that we did not find.
"""

from __future__ import annotations

import math
from typing import Literal

from assay.errors import UserError

Shape = Literal["linear", "cosine", "1-sqrt", "inverse", "inverse-sqrt", "exponential"]

_NEVER_ZERO = ("inverse", "exponential")


def decayed(shape: Shape, u: float, start: float, end: float) -> float:
    """The rate where the share ``u`` in [0, 1] of the decay is over."""
    if shape == "inverse":
        return 1 / ((1 - u) / start + u / end)
    if shape == "exponential":
        return start * (end / start) ** u
    if shape == "cosine":
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * u))
    fallen = u
    if shape == "1-sqrt":
        fallen = math.sqrt(u)
    elif shape == "inverse-sqrt":
        fallen = (1 / math.sqrt(1 + 10 * u) - 1) / (1 / math.sqrt(11) - 1)
    return start + (end - start) * fallen


def check_end(schedule: str, shape: Shape, name: str, end: float) -> None:
    """Raises ``UserError`` if a decay of this shape cannot end at ``end``: a share of the peak, called ``name``."""
    if shape in _NEVER_ZERO and end == 0:
        raise UserError(f"schedule {schedule!r}: the shape {shape!r} never reaches {name}=0; give {name} above 0")
