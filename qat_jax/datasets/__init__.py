"""Sources of images and texts: random access, deterministic, one record an item."""
