"""The standard diagnostics, one a file."""
