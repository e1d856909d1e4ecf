"""What the benchmarks share: options, shapes of networks, texts to train on, spreads, tables and figures."""
