"""Measures of sets of images, in float64 NumPy, tested on closed forms."""
