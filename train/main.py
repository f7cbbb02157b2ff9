"""Trains an adapter:  python -m train.main --config configs/demo.py [--workdir runs/demo] [--config.train.steps=500]"""

import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

import configs
from qat_jax.runs import end_on_signals, explained
from qat_jax.stages import lock

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The recipe, a file in configs/.", lock_config=True)
flags.DEFINE_string("workdir", None, "Where everything goes; a run found there is continued. Default: runs/<recipe>.")


def main(argv: list[str]) -> None:
  """Parses flags; `train.pipeline.train` does the work."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  from train.pipeline import train

  logging.set_verbosity(logging.WARNING)
  workdir = configs.workdir()
  with explained(), lock(workdir):
    train(FLAGS.config, workdir)
  print(f"adapter: {workdir / 'adapter'}")
  print(f"next: {shlex.join(['python', '-m', 'eval.main', *sys.argv[1:]])}", flush=True)


if __name__ == "__main__":
  end_on_signals()
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=configs.parsed)
