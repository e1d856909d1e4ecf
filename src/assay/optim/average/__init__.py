"""Averages of the last weights of a run, which take the place of a decayed learning rate."""
