"""EL2N and GraNd beside the module of their authors: python benchmarks/peers/el2n_grand.py CLONE

CLONE is a clone of github.com/mansheej/data_diet; JAX has to be installed. Of flax, which the files import, only the
softmax is used, and JAX's stands in for it. Both score one batch under one network of two layers, in float64.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, patch

import jax
import torch
import torch.nn.functional as F
from clones import Differences, Peer, draw, git
from torch import nn

from assay.analysis.el2n_grand import el2n, grand

REPOSITORY = "github.com/mansheej/data_diet"
COUNT, FEATURES, HIDDEN, CLASSES = 40, 6, 9, 5


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    linen = MagicMock(softmax=jax.nn.softmax, log_softmax=jax.nn.log_softmax)
    stand_ins = {
        "flax": MagicMock(linen=linen),
        "flax.linen": linen,
        "tqdm": MagicMock(),
        "data_diet.data": MagicMock(),
    }
    with patch.dict(sys.modules, {**stand_ins, "data_diet": ModuleType("data_diet")}):
        peer = Peer(__doc__, REPOSITORY, "data_diet/metrics.py")
        sys.modules["data_diet.metrics"] = peer.module
        for name in ("gradients", "scores"):
            theirs = load(name)
    peer.file = "data_diet/scores.py"
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, CLASSES)).double()
    inputs, labels = draw(COUNT, FEATURES, seed=0), torch.arange(COUNT) % CLASSES
    weights = [p.detach().numpy() for p in model.parameters()]

    def network(params: Any, state: Any, x: Any) -> Any:
        return jax.numpy.tanh(x @ params[0].T + params[1]) @ params[2].T + params[3]

    def score(kind: str) -> torch.Tensor:
        one_hot = F.one_hot(labels, CLASSES).double().numpy()
        return torch.tensor(theirs.get_score_fn(network, weights, None, kind)(inputs.numpy(), one_hot))

    found = Differences()
    found.add("EL2N", el2n(model(inputs), labels), score("l2_error"))
    found.add("GraNd", grand(model, inputs, labels), score("grad_norm"))
    found.write(peer, __file__, count=COUNT, features=FEATURES, hidden_size=HIDDEN, classes=CLASSES, dtype="float64")


def load(name: str) -> Any:
    """A file of the clone whose imports are relative; those that it imports are there already."""
    module = ModuleType(f"data_diet.{name}")
    module.__package__ = "data_diet"
    sys.modules[module.__name__] = module
    exec(compile(git(sys.argv[1], "show", f"HEAD:data_diet/{name}.py"), name, "exec"), module.__dict__)
    return module


if __name__ == "__main__":
    main()
