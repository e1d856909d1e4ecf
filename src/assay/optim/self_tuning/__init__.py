"""Self-tuning networks: hyper-parameters that are learned on validation data within one training.

    h̃ = h + softplus(s) ⊙ ε,  ε ~ N(0, I) for each example;    w(h̃) = best-response layers' weights
    training step      w ← w − η ∇_w L_train(w(h̃), r(h̃))
    validation step    (h, s) ← (h, s) − η' ∇ [L_valid(w(h̃)) − entropy_weight · Σ ln(softplus(s) √(2πe))]

r maps the unbounded h to the hyper-parameters themselves. No gradient of the training loss reaches h: that of the
validation loss does, through the weights alone, which training has taught to respond to h. So only what changes the
optimum of the training loss can be tuned: dropout, weight decay, augmentation, but no learning rate.

MacKay, Vicol, Lorraine, Duvenaud, Grosse, 2019, arXiv:1903.03088.
"""

from __future__ import annotations

from assay.optim.self_tuning.hyperparameters import Hyperparameter, Hyperparameters
from assay.optim.self_tuning.layers import ResponsiveConv2d, ResponsiveLinear, dropout, squared_norm
from assay.optim.self_tuning.tuner import SelfTuner

__all__ = [
    "Hyperparameter",
    "Hyperparameters",
    "ResponsiveConv2d",
    "ResponsiveLinear",
    "SelfTuner",
    "dropout",
    "squared_norm",
]
