"""Embeddings on disk, so that each is computed once: across the tasks of a run, the points of a sweep, and runs.

    <root>/embeddings/<engine>/<segment>.safetensors

An embedding is known by its engine (every argument, dimensions and normalisation among them) and the text exactly as the
engine is given it, prompt included.

segments  a file of vectors: written once, whole or not at all, and checked whenever it is read
index     where keys are, in memory
cache     all of them under one root, the bound on what they may take, and those of one engine
"""
