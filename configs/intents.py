"""Several intents over one gallery, drawn: a toy on light ground asks for its shape, on dark ground for its colours.

Command:   python -m train.main --config configs/intents.py --workdir runs/intents
           python -m eval.main  --config configs/intents.py --workdir runs/intents
Hardware:  2 CPU cores. Time: about 5 minutes beside other work, with the demo's features at hand.
Result:    on test, seeds 0 to 2, mAP × 100: plain 18.4, static PLDA 32.2, experts 63.8 (docs/notes/results.md).
           Trained: static maps 40.1, query head 52.7, gated 55.0.

After `make demo`, --config.data.folder=runs/demo/data draws the gallery's toys no second time, and
--config.data.reuse=runs/demo encodes only the queries.
"""

from ml_collections import ConfigDict

from configs import features


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/features.py."""
  config = features.get_config()
  config.data.source = "toybox"
  config.data.name = "intents"
  config.encoder.name = "toy_clip"
  config.form = "gated"
  config.trained.image = "always"
  config.gallery_map = "always"
  config.levelled.image = 0
  config.train.steps = 1500
  config.static_train.steps = 1000
  return config
