"""The whole path on data that draws itself: toybox images, a small CLIP, an adapter, and the table.

Command:   make demo        (python -m train.main and python -m eval.main with this config, into runs/demo)
"""

from ml_collections import ConfigDict

from configs import features


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/features.py."""
  config = features.get_config()
  config.data.source = "toybox"
  config.encoder.name = "toy_clip"
  config.train.steps = 1000
  config.static_train.steps = 1000
  return config
