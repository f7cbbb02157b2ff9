r"""ILIAS with SigLIP2 ViT-L/16 features (512 pixels); the rest is that of configs/ilias_clip_l14.py.

Files:     as there. SigLIP2 has no encoder in this package, so the training features come from elsewhere, as a
           retrieval set (docs/data.md) in TRAINING.
Command:   python -m train.main --config configs/ilias_siglip2_l16.py --config.data.root=TRAINING
           python -m eval.main  --config configs/ilias_siglip2_l16.py --config.data.root=TRAINING \
             --config.benchmark.root=ROOT --config.benchmark.features=FEATURES
Result:    not yet run here. To expect: mAP@1000 of QuARI in arXiv 2505.21647: to be filled from the paper.
"""

from ml_collections import ConfigDict

from configs import ilias_clip_l14


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/ilias_clip_l14.py."""
  config = ilias_clip_l14.get_config()
  config.data.source = ""
  config.encoder.name = "google/siglip2-large-patch16-512"
  return config
