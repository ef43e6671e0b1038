"""Published weights into our parameters, and back: files, key maps, the CLI."""
