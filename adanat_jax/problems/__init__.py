"""Anybody's generator: decoding and learning for networks of other people."""
