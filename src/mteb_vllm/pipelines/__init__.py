"""What is done with a model and tasks, one module each. A pipeline does not know Hydra."""
