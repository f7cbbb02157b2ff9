"""Heads that need no training loop."""
