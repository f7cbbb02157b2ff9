"""The older name of the command's `convert`, a program; see `qat_jax.cli`."""

import sys

from qat_jax.cli import main

if __name__ == "__main__":
  main(["convert", *sys.argv[1:]])
