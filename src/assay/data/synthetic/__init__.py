"""Synthetic tasks: token ids from a rule that is known, so that a model can be held against it."""
