"""The demo's small CLIP, on toybox views of families of their own, with coarse captions only.

Command:   python -m train.encoder --config configs/demo_encoder.py --workdir runs/demo_encoder
Hardware:  2 CPU cores, shared with other work; 8 minutes, of which 1 draws 14,000 images.
Result:    500,000 parameters, 2 MB; training loss 0.9 (chance 4.85). On the toybox validation split, mAP × 100 of plain
           cosine with detailed captions 4.2, with image queries 37.8. To replace the one that the package carries:
           --config.out=qat_jax/encoders/toy_clip
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
      "steps": 1600,
      "learning_rate": 2e-3,
      "warmup_steps": 100,
      "weight_decay": 0.05,
      "temperature": 0.07,
    }
  )
  # The folder to write, with the files of a hub model; empty: the workdir.
  config.out = ""
  return config
