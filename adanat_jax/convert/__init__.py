"""Published weights to our parameters, and back: one key map per family."""
