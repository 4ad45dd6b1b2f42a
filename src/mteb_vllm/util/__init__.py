"""Helpers that know nothing of models or tasks: files, digests, escaping, masking, streams."""
