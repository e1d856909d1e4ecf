"""Comparison: arms × seeds under one budget, paired by seed, and the statistics on them."""
