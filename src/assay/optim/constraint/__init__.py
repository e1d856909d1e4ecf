"""Constraints: what the parameters of a network are held to after each step of the optimizer.

A constraint is constructed with ``(model)``, whose parameters are then as they were initialised, also where a run is
resumed: it has no state of its own.
"""
