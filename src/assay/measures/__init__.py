"""Measures: numbers that a tensor, or a loss around its parameters, is summed up by.

Pure functions of tensors, one family a module, for diagnostics, analyses and claims alike.
"""
