"""CLIP ViT-B/16 from the hub on COCO's captions: text queries that each look for the one image they describe.

Data:      tfds build coco_captions --file_format=array_record       (38 GB to download; needs `pip install tensorflow`)
           82,783 images to train on, Karpathy and Li's 5,000 of val and 5,000 of test, five text queries an image.
Command:   python -m train.main --config configs/clip_b16.py --workdir runs/clip_b16
           python -m eval.main  --config configs/clip_b16.py --workdir runs/clip_b16
Hardware:  meant for one GPU or a TPU host; not yet run here, so there is no time to quote. The path itself is tested
           with a few generated images of COCO's form and the demo's small CLIP.
Result:    not yet known. COCO asks for what a caption says, not for one particular object, and CLIP has seen much of
           its kind: the gain may be small. Check first that recall@1 of `plain` is near the published zero-shot figure.

Images of your own instead: --config.data.source=folder --config.data.folder=PICTURES (docs/data.md).
A first look: --config.data.limit=2000. CLIP ViT-L/14: --config.encoder.name=openai/clip-vit-large-patch14, at about
five times the cost of an image (81 GFLOPs, not 18).
"""

from ml_collections import ConfigDict

from configs import features


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/features.py."""
  config = features.get_config()
  config.data.source = "tfds"  # data.name is empty, which means coco_captions
  config.data.folder = "~/tensorflow_datasets"
  config.encoder.name = "openai/clip-vit-base-patch16"
  config.train.batch_size = 1024
  config.train.steps = 4000
  return config
