"""The configuration: schema, composition with Hydra, overrides."""
