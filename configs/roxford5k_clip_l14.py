r"""Revisited Oxford with CLIP ViT-L/14 features: easy, medium and hard; rparis6k, oxford5k, paris6k, instre alike.

Files:     gnd_roxford5k.pkl in ROOT; in FEATURES the folders queries/ and gallery/ (img_emb, metadata with id, the
           names of qimlist and imlist), queries cropped to their box. +1M: --config.benchmark.distractors=FOLDER.
Command:   python -m train.main --config configs/roxford5k_clip_l14.py
           python -m eval.main  --config configs/roxford5k_clip_l14.py --config.benchmark.root=ROOT \
             --config.benchmark.features=FEATURES
           Another set: --config.benchmark.name=rparis6k, with its own ROOT and FEATURES.
Result:    not yet run here; no figure to expect is known from the paper of QuARI.
"""

from ml_collections import ConfigDict

from configs import clip_l14


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/clip_l14.py."""
  config = clip_l14.get_config()
  config.eval.methods = ("all",)
  config.benchmark.name = "roxford5k"
  return config
