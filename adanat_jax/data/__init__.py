"""Images and conditions: one file a source, all with the same contract."""
