"""Claims: measuring what papers say of their methods.

A claim is in its paper's record (``assay.catalog``); how it is measured is one of the ``ways``: a comparison of arms,
a property of trained arms, a benchmark of contestants side by side, an experiment of its own. ``measure`` carries it
out and writes evidence, ``judging`` has the rule by which the verdict follows from the values.
"""
