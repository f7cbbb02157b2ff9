"""The demo's small CLIP, on toybox views of families of their own, with coarse captions only.

Command:   python -m train.encoder --config configs/demo_encoder.py --workdir runs/demo_encoder
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """Returns the recipe, in the order of the stages."""
  config = ConfigDict()
  config.seed = 0
  config.data = ConfigDict({"name": "pretrain", "split": "pretrain"})

  # 36 patches of the middle 60 of 64 pixels.
  config.model = ConfigDict(
    {
      "projection": 96,
      "vision": {"hidden": 96, "feed_forward": 192, "layers": 3, "heads": 4, "patch": 10, "image": 64, "crop": 60},
      "text": {"hidden": 96, "feed_forward": 192, "layers": 2, "heads": 4, "tokens": 32},
    }
  )

  config.train = ConfigDict(
    {
      "batch_size": 128,
      "steps": 1000,
      "learning_rate": 2e-3,
      "warmup_steps": 100,
      "weight_decay": 0.05,
      "temperature": 0.07,
    }
  )
  # The folder to write, with the files of a hub model; empty: the workdir.
  config.out = ""
  return config
