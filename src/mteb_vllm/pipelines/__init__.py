"""Pipelines: what a run does with a model and tasks. They know nothing of Hydra."""
