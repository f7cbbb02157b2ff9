r"""INQUIRE, full rank, with CLIP ViT-L/14 features.

Files:     inquire_queries_test.csv and inquire_annotations.csv of the download in ROOT; in FEATURES the folders
           gallery/ (img_emb, metadata with image_path: the published embeddings of iNaturalist 2024 open as they are)
           and queries/ (text_emb, metadata with id, the query_id of the CSV): docs/benchmarks.md shows how to write
           it.
Command:   python -m train.main --config configs/inquire_clip_l14.py
           python -m eval.main  --config configs/inquire_clip_l14.py --config.benchmark.root=ROOT \
             --config.benchmark.features=FEATURES
Result:    not yet run here. To expect: mAP@50 of QuARI in arXiv 2505.21647: to be filled from the paper. The re-rank
           set: --config.benchmark.name=inquire_rerank.
"""

from ml_collections import ConfigDict

from configs import ilias_clip_l14


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/ilias_clip_l14.py."""
  config = ilias_clip_l14.get_config()
  config.benchmark.name = "inquire"
  return config
