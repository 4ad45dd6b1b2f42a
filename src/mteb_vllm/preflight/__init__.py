"""All checks of a command, before anything heavy is imported. Every mistake is reported at once."""
