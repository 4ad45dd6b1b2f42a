"""Pipelines: the work of a run, given a model and tasks. They do not depend on Hydra."""
