"""Raw images and captions, one file a format."""
