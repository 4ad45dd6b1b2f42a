"""Helpers that are independent of models and tasks: files, digests, escaping, masking, streams."""
