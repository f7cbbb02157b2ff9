"""`python -m qat_jax` is the command `qat-jax`."""

from qat_jax.cli import main

if __name__ == "__main__":
  main()
