"""Adapters for others: folders to share, with a model card and programs."""
