"""The embedding cache: embeddings on disk, shared by the tasks of a run, the points of a sweep, and runs.

    <root>/embeddings/<engine>/<segment>.safetensors

The key of an embedding is the engine (every argument, with dimensions and normalisation) and the exact input text, with its
prompt.

segments  a file of vectors, written atomically and verified whenever it is read
index     maps keys to positions in segments, in memory
cache     all embeddings under one root, the limit on their size, and the embeddings of one engine
"""
