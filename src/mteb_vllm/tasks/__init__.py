"""Tasks: selection, data, estimates of their work, and the built-in demo tasks."""
