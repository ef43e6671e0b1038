"""Images and conditions: one file per source, one interface for all."""
