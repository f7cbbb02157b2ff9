r"""INQUIRE, full rank, with SigLIP2 ViT-L/16 (512 pixels) features; files as in configs/inquire_clip_l14.py.

Command:   python -m train.main --config configs/inquire_siglip2_l16.py --config.data.root=TRAINING
           python -m eval.main  --config configs/inquire_siglip2_l16.py --config.data.root=TRAINING \
             --config.benchmark.root=ROOT --config.benchmark.features=FEATURES
Result:    not yet run here. To expect: mAP@50 of QuARI in arXiv 2505.21647: to be filled from the paper.
"""

from ml_collections import ConfigDict

from configs import ilias_siglip2_l16


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/ilias_siglip2_l16.py."""
  config = ilias_siglip2_l16.get_config()
  config.benchmark.name = "inquire"
  return config
