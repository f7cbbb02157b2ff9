"""The whole path on data that draws itself: toybox images, a small CLIP, an adapter, and the table.

Command:   make demo        (python -m train.main, then python -m eval.main, with this config, into runs/demo)
Hardware:  2 CPU cores. Time and result: docs/notes/results.md.
"""

from ml_collections import ConfigDict

from configs import features


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/features.py."""
  config = features.get_config()
  config.data.source = "toybox"
  config.encoder.name = "toy_clip"
  config.trained.image = "never"  # closed forms take seconds
  config.gallery_map = "never"  # of the trained forms; a static map and the closed form of both sides are tried
  config.train.steps = 1800
  config.train.warmup_steps = 200
  config.train.patience = 500
  config.static_train.steps = 1000
  config.validation.every = 100
  return config
