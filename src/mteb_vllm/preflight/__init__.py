"""All checks of a command before heavy packages are imported; all errors are reported together."""
