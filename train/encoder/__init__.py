"""Training of the small encoder of the demo: what it learns from, and its vocabulary."""
