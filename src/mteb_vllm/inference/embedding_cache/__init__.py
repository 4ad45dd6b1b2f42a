"""Embeddings on disk, so that each is computed once: across the tasks of a run, the points of a sweep, and runs.

    <root>/embeddings/<engine>/<segment>.safetensors

An embedding is known by its engine (every argument, dimensions and normalisation among them) and the text exactly as the
engine is given it, prompt included.

segments  a file of vectors: written once, whole or not at all, and checked whenever it is read
index     where keys are, in memory
space     the embeddings of one engine: looked up, and added
store     all of them under one root, and the bound on what they may take
"""
