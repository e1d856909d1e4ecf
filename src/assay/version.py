"""The version, in one place that imports nothing heavy."""

from importlib.metadata import version

__version__ = version("assay")
