"""Engines: their arguments, their common interface, and one module per backend, each with a function `load`."""
