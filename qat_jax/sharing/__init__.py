"""Adapters for others: folders to share, what is said of them, and the hub."""
