"""Selections: which parameters a step trains.

A selection may ask for ``model``, ``optimizer`` (built over all parameters before anything is frozen), ``seed`` and
``calibration``, a function that gives token ids of the training text. All processes of a run must draw alike, from
(seed, step) alone.
"""
