"""RMSNorm whose gains are decayed according to their place (IWD), and may stand in the maps that read them.

    y = γ ⊙ x / rms(x)

The gain of an *input norm*, one whose result feeds linear maps (before a branch or the head), adds no function: it
preconditions those maps, and weight decay keeps it in bounds. The gain of an *output norm* sets the size of what a
module gives (after a branch, on the stream, on queries and keys), and is not decayed.

Wang et al., 2026, arXiv:2605.26895.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from assay.nn.norm import NormPlace, norms
from assay.nn.norm.rms_norm import rms_normalize
from assay.nn.scale_vector import Form, ScaleVector


@norms.register("scale-vectors")
class ScaleVectorNorm(nn.Module):
    """``decay`` says which gains are decayed: those of input norms, all or none.

    With ``branch_gains`` the norms on the inputs of branches have no gain, because each map that reads them has one
    of its own (``linear = "scale-vectors"``).
    """

    def __init__(
        self,
        hidden_size: int,
        place: NormPlace,
        *,
        decay: Literal["input", "all", "none"] = "input",
        branch_gains: bool = False,
        form: Form = "vector",
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.eps = eps
        decayed = decay == "all" or (decay == "input" and place in ("input", "final"))
        gainless = branch_gains and place == "input"
        self.gain = None if gainless else ScaleVector(hidden_size, form, decay=decayed)

    def forward(self, x: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch hidden"]:
        unit = rms_normalize(x, self.eps).to(x.dtype)
        return unit if self.gain is None else self.gain() * unit
