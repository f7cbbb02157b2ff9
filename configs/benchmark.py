r"""A public benchmark with the features of one encoder; the argument names both: `benchmark.py:ILIAS,ENCODER`.

Files:     docs/benchmarks.md says what ROOT and FEATURES hold for each benchmark. Training encodes COCO's
           captions (configs/clip_b16.py), or takes features of the same encoder: --config.data.root=TRAINING.
Command:   python -m train.main --config configs/benchmark.py:ilias,google/siglip2-large-patch16-512
           python -m eval.main  --config configs/benchmark.py:ilias,google/siglip2-large-patch16-512 \
             --config.benchmark.root=ROOT --config.benchmark.features=FEATURES
           Without an encoder: openai/clip-vit-large-patch14. The 5M set of ILIAS: --config.benchmark.mini_ids=LIST.
Hardware:  meant for one GPU or a TPU host. 100 million features of width 768 in fp16 are 154 GB, read at every pass.
Result:    not yet run here. The paper of QuARI (arXiv 2505.21647) has figures for ILIAS and INQUIRE with CLIP B/16 and
           L/14 and SigLIP2 B/16 and L/16; it has none for the others.

ILIAS and INQUIRE train the published form, with the sizes, the batch and the semi-positives of the paper. Training data
and noise are ours.
"""

from ml_collections import ConfigDict

from configs import clip_b16

ENCODER = "openai/clip-vit-large-patch14"
PUBLISHED = ("ilias", "inquire", "inquire_rerank")  # the paper of QuARI has figures for these
OTHERS = ("roxford5k", "rparis6k", "oxford5k", "paris6k", "instre", "gldv2")


def get_config(argument: str = "") -> ConfigDict:
  """Returns the recipe for `BENCHMARK` or `BENCHMARK,ENCODER`: what differs from configs/clip_b16.py."""
  benchmark, _, encoder = argument.partition(",")
  if benchmark not in (*PUBLISHED, *OTHERS):
    raise LookupError(  # config_flags would wrap a ValueError in a traceback
      f"configs/benchmark.py:{argument} names the benchmark {benchmark!r}; use one of "
      f"{', '.join((*PUBLISHED, *OTHERS))}, as in configs/benchmark.py:ilias,{ENCODER}"
    )
  config = clip_b16.get_config()
  config.benchmark.name = benchmark
  config.encoder.name = encoder or ENCODER
  config.encoder.batch_size = 128
  config.eval.methods = ("all",)
  if benchmark in PUBLISHED:
    config.form = "paper"
    config.semi_positives.keep = 10
    config.train.batch_size = 320
  return config
