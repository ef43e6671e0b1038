"""A trained generator, and the compiled program that it samples with."""
