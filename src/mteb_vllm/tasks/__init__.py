"""Tasks: their selection, data, estimates of their work, and the embedded demo tasks."""
