"""Training of adapters on features, and of the small encoder of the demo."""
