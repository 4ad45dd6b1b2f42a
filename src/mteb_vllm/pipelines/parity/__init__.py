"""Whether an engine's embeddings and scores are those of a reference, and if not, what would explain it."""
