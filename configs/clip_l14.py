"""CLIP ViT-L/14 from the hub on COCO's captions; all but the encoder is that of configs/clip_b16.py, data included.

Command:   python -m train.main --config configs/clip_l14.py --workdir runs/clip_l14
           python -m eval.main  --config configs/clip_l14.py --workdir runs/clip_l14
Hardware:  meant for one GPU or a TPU host; not yet run here, so there is no time to quote. Encoding costs about five
           times as much as with ViT-B/16 (81 against 18 GFLOPs an image); training hardly more (features 768 wide).
Result:    not yet known; see configs/clip_b16.py.
"""

from ml_collections import ConfigDict

from configs import clip_b16


def get_config() -> ConfigDict:
  """Returns the recipe: what differs from configs/clip_b16.py."""
  config = clip_b16.get_config()
  config.encoder.name = "openai/clip-vit-large-patch14"
  config.encoder.batch_size = 128
  return config
