"""Encoders: images and texts to unit features of one width."""
