"""Trains the demo's small CLIP: python -m train.encoder --config configs/demo_encoder.py [--workdir runs/demo_encoder].

The result is a folder with the files of any CLIP on the hub, which `load_encoder` opens.
"""

import pathlib

from absl import app, flags
from ml_collections import config_flags

import configs
from qat_jax.runs import end_on_signals, explained
from train.encoder.training import train_encoder

FLAGS = flags.FLAGS


def main(argv: list[str]) -> None:
  """Parses flags; `train` does the work."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  with explained():
    train_encoder(FLAGS.config, pathlib.Path(FLAGS.workdir))


if __name__ == "__main__":
  end_on_signals()
  config_flags.DEFINE_config_file("config", None, "The recipe, a file in configs/.", lock_config=True)
  flags.DEFINE_string("workdir", "runs/demo_encoder", "Where the data and, unless config.out says else, the CLIP go.")
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=configs.parsed)
