"""Training of adapters on features, and of the small encoder of the demo."""

from qat_jax import start as start
