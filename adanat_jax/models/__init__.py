"""Flax modules, and nothing else: sizes are fields, state is explicit."""
