"""The program python -m eval.latency; see `eval.speed.latency` for what it measures."""

from absl import app

from eval.speed.latency import main

if __name__ == "__main__":
  app.run(main)
