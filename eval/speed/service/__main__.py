"""Runs the benchmark: python -m eval.speed.service."""

from eval.speed.service.benchmark import main
from qat_jax.runs import ANEW, end_on_signals

if __name__ == "__main__":
  end_on_signals(ANEW)
  main()
