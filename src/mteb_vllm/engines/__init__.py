"""Engines: what they are opened with, their common interface, and one module for each backend with a function `load`."""
