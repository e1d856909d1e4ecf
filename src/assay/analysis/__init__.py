"""Analyses: published ways of looking into a network, each a function with a documented result.

A module is one paper's method and is called by name: ``assay analyse raptor ...`` is
``assay.analysis.raptor.raptor(...)``, whose command is in ``assay.cli.analyse.raptor``. Analyses take plain PyTorch
modules, tensors or files; what needs a causal language model takes one of transformers, as ``open_model`` gives it.
"""
