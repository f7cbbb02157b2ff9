"""The program python -m eval.latency; see `eval.speed.latency` for what it measures."""

from absl import app

from eval.speed.latency import main
from qat_jax.runs import ANEW, end_on_signals

if __name__ == "__main__":
  end_on_signals(ANEW)
  app.run(main)
