"""Linear maps: what stands in the place of the matrices of mixers and MLPs.

A linear component is given the map that a mixer or an MLP has made, as ``linear``, and its ``place``; it returns the
map to use, an ``nn.Linear`` too, so that its weight keeps its name, its start and its role for the optimizer. Mixers
and MLPs list the maps that read the layer's input itself in ``input_maps``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import nn

from assay.registry import Registry

LinearPlace = Literal["input", "inner", "unknown"]
"""Whether a map reads the layer's input; ``unknown`` where the mixer or MLP does not say."""

linears: Registry[nn.Linear] = Registry("linear", __name__)


@linears.register("plain")
def plain(linear: nn.Linear) -> nn.Linear:
    """The map as it is."""
    return linear


def replace_linears(branch: nn.Module, make: Callable[[nn.Linear, LinearPlace], nn.Linear]) -> None:
    """Put ``make(linear, place)`` in the place of every ``nn.Linear`` of a mixer or an MLP."""
    reading = getattr(branch, "input_maps", None)
    for path, linear in list(branch.named_modules()):
        if type(linear) is nn.Linear:
            place: LinearPlace = "unknown" if reading is None else "input" if path in reading else "inner"
            branch.set_submodule(path, make(linear, place))
