r"""Google Landmarks v2, retrieval, with CLIP ViT-L/14 features: mAP@100, public and private part.

Files:     retrieval_solution_v2.1.csv and index.csv in ROOT; in FEATURES the folders queries/ and gallery/ (img_emb,
           metadata with id), the gallery in the order of index.csv.
Command:   python -m train.main --config configs/gldv2_clip_l14.py
           python -m eval.main  --config configs/gldv2_clip_l14.py --config.benchmark.root=ROOT \
             --config.benchmark.features=FEATURES
Result:    not yet run here; no figure to expect is known from the paper of QuARI.
"""

from ml_collections import ConfigDict

from configs import clip_l14


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/clip_l14.py."""
  config = clip_l14.get_config()
  config.eval.methods = ("all",)
  config.benchmark.name = "gldv2"
  return config
