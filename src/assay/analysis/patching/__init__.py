"""Patching: how much of a behaviour comes back when one activation of another run is put in its place."""
