"""SinkGD's scaling beside axolotl's: python benchmarks/peers/sinkgd.py CLONE

CLONE is a clone of github.com/axolotl-ai-cloud/axolotl. Theirs divides the whole matrix by its norms in each half of
a pass; ours finds the factors of rows and columns and multiplies once. Single matrices and batches of them go through
1, 5 and 50 passes in float64, also with rows whose sizes are orders of magnitude apart. Where such a matrix is small
as a whole, theirs divides by 1e-8 in place of the smaller norms, and needs more passes to come to the same.
"""

from __future__ import annotations

import torch
from clones import Differences, Peer, draw

from assay.optim.sinkgd import sr_sinkhorn

SHAPES, PASSES, EPS = ((5, 7), (7, 5), (3, 8, 6), (40, 1)), (1, 5, 50), 1e-8
ABSENT = ("torchao", "torchao.optim", "torchao.optim.adam", "torchao.optim.quant_utils",
          "torchao.optim.subclass_8bit", "axolotl", "axolotl.integrations", "axolotl.integrations.base",
          "axolotl.utils", "axolotl.utils.optimizers", "axolotl.utils.optimizers.sinkgd_triton")  # fmt: skip


def main() -> None:
    peer = Peer(
        __doc__, "github.com/axolotl-ai-cloud/axolotl", "src/axolotl/utils/optimizers/sinkgd.py", absent=ABSENT
    )
    found = Differences()
    for place, shape in enumerate(SHAPES):
        gradient = draw(*shape, seed=place)
        spread = gradient * (4 * draw(*shape[:-1], 1, seed=10 + place)).exp()
        for passes in PASSES:
            for name, one in (("even", gradient), ("spread", spread), ("small rows", 1e-5 * spread)):
                found.add(
                    f"{name}, {passes} passes", sr_sinkhorn(one, passes), peer.module.sr_sinkhorn(one, passes, EPS)
                )
    found.write(peer, __file__, shapes=SHAPES, eps=EPS, dtype="float64")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
