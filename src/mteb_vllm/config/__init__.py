"""The configuration: its schema, composition with Hydra, and overrides."""
