"""Building blocks of networks: one technique per file, each behind a name in its folder's registry."""
