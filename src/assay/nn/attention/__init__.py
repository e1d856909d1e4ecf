"""Attention: mixers that weigh earlier tokens by the agreement of queries with keys."""
