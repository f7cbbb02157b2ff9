r"""INQUIRE, full rank, with CLIP ViT-B/16 features; files as in configs/inquire_clip_l14.py.

Command:   python -m train.main --config configs/inquire_clip_b16.py
           python -m eval.main  --config configs/inquire_clip_b16.py --config.benchmark.root=ROOT \
             --config.benchmark.features=FEATURES
Result:    not yet run here. To expect: mAP@50 of QuARI in arXiv 2505.21647: to be filled from the paper.
"""

from ml_collections import ConfigDict

from configs import ilias_clip_b16


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/ilias_clip_b16.py."""
  config = ilias_clip_b16.get_config()
  config.benchmark.name = "inquire"
  return config
