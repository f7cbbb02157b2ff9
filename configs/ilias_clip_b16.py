r"""ILIAS with CLIP ViT-B/16 features; all but the encoder is that of configs/ilias_clip_l14.py, files included.

Command:   python -m train.main --config configs/ilias_clip_b16.py
           python -m eval.main  --config configs/ilias_clip_b16.py --config.benchmark.root=ROOT \
             --config.benchmark.features=FEATURES
Result:    not yet run here. To expect: mAP@1000 of QuARI in arXiv 2505.21647: to be filled from the paper.
"""

from ml_collections import ConfigDict

from configs import ilias_clip_l14


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/ilias_clip_l14.py."""
  config = ilias_clip_l14.get_config()
  config.encoder.name = "openai/clip-vit-base-patch16"
  return config
