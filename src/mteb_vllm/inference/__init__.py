"""Compute embeddings of texts and scores of pairs: tokenisation, truncation, batching, and the embedding cache."""
