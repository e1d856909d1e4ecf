"""Transfers: a rate and a decay that were tuned at one width, as what they should be at another.

A transfer is constructed with ``(hidden_size)``, the width of the network to be trained.
"""
