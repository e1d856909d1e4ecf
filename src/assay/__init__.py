"""assay: diagnose neural networks, apply published techniques by name, compare them fairly."""
