"""assay: diagnose neural networks, apply published techniques by name, compare them fairly."""

from assay import _transformers_hook

_transformers_hook.install()
