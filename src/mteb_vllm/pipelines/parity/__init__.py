"""`pipeline=parity`: compare an engine's embeddings and scores with a reference, and find causes of differences."""
