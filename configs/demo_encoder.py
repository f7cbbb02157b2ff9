"""The demo's small CLIP, on toybox views of families of their own, with coarse captions only.

Command:   XLA_FLAGS=--xla_force_host_platform_device_count=2 python -m train.encoder --config configs/demo_encoder.py
Hardware:  2 CPU cores with AVX-512; 24 minutes, of which 70 s draw 72,000 images.
Result:    850,000 parameters, 3.4 MB; training loss 1.4 (chance 5.5). On the toybox validation split, mAP × 100 of
           plain cosine with detailed captions 22.7, with image queries 45.0. To replace the one that the package
           carries: --config.out=qat_jax/encoders/toy_clip; tests/data/toy_clip.npz is what FlaxCLIPModel of
           transformers 4 makes of it.
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
      "projection": 128,
      "vision": {"hidden": 128, "feed_forward": 256, "layers": 3, "heads": 4, "patch": 10, "image": 64, "crop": 60},
      "text": {"hidden": 128, "feed_forward": 256, "layers": 2, "heads": 4, "tokens": 36},
    }
  )

  config.train = ConfigDict(
    {
      "batch_size": 256,
      "longest": 28,  # tokens; coarse captions have fewer
      "steps": 3000,
      "learning_rate": 2e-3,
      "warmup_steps": 100,
      "weight_decay": 0.05,
      "temperature": 0.07,
    }
  )
  # The folder to write, with the files of a hub model; empty: the workdir.
  config.out = ""
  return config
