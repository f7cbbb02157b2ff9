r"""ILIAS with CLIP ViT-L/14 features: the published form, with the published sizes and semi-positives.

Files:     image_ids/ of the dataset's download in ROOT; its published features of this encoder, or your own in the
           same form, in FEATURES: features_queries.hdf5, features_text_queries.hdf5, features_positives.hdf5 and
           features_distractors_00000.hdf5 to …_00099.hdf5. Adapters train on COCO's captions (configs/clip_b16.py),
           or on any features of the same encoder with --config.data.root=ROOT.
Command:   python -m train.main --config configs/ilias_clip_l14.py
           python -m eval.main  --config configs/ilias_clip_l14.py --config.benchmark.root=ROOT \
             --config.benchmark.features=FEATURES
           For the 5M set add --config.benchmark.mini_ids=LIST, the file of its ids.
Hardware:  meant for one GPU or a TPU host; 100 million features in fp16 are 154 GB, read from disk at every pass.
Result:    not yet run here. To expect: mAP@1000 of QuARI in arXiv 2505.21647, I2I and T2I, 5M and 100M: to be filled
           from the paper. Sizes, batch and semi-positives are the paper's, training data and noise are ours.
"""

from ml_collections import ConfigDict

from configs import clip_l14


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/clip_l14.py."""
  config = clip_l14.get_config()
  config.form = "paper"
  config.semi_positives.keep = 10
  config.train.batch_size = 320
  config.eval.methods = ("all",)
  config.benchmark.name = "ilias"
  return config
