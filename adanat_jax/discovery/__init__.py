"""Categories, known and new, from pictures and words."""
