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
  # Only what serves, and what it is compared with. On the toybox the adaptive form is no better than a query head of
  # the same size and takes twice as long; neither memory nor captions help (docs/notes/results.md).
  config.form = "query_only"
  config.forms.query_only.hidden = 2391  # the size of the adaptive form at this width
  config.memory.text = 0
  config.captions.update({"text": 0, "image": 0})
  config.trained.image = "never"  # closed forms take seconds
  config.gallery_map = "never"  # of the trained forms; a static map and the closed form of both sides are tried
  config.train.steps = 1800
  config.train.warmup_steps = 200
  config.train.patience = 500
  config.static_train.steps = 1000
  config.validation.every = 100
  config.eval.intents = True  # one toy, two rankings
  return config
