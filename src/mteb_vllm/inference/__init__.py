"""From texts to embeddings and from pairs to scores: tokenising, truncation, batching, and the embedding cache."""
