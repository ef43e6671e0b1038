"""Parallel decoding: pure functions, no networks, no config, no files."""
