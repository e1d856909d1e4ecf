"""Gradient transforms: what becomes of the gradients between the backward pass and the optimizer.

A gradient transform may ask for ``seed``, the run's, and ``model``, the network. What it keeps from step to step is
in its ``state_dict``.
"""
