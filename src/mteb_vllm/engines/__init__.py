"""What can work in an engine: one module each, named as `engine.backend` names it, with a function `load`."""
