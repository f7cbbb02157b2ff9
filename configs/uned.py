r"""UnED's published training features, then ILIAS: the paper's own setting. The argument: `uned.py:ENCODER,FORM`.

Files:     docs/benchmarks.md says where ILIAS's features, UnED's list and the linear layers are.
Command:   python -m eval.benchmarks.uned features_uned.hdf5 uned_paths_1M.txt ROOT
           python -m train.main --config configs/uned.py:google/siglip2-large-patch16-512 --config.data.root=ROOT
           python -m eval.main  --config configs/uned.py:google/siglip2-large-patch16-512 --config.data.root=ROOT \
             --config.benchmark.root=ILIAS --config.benchmark.features=FEATURES --config.benchmark.linear_layer=FILE.pth
           Without FORM it is gated; run both again with `,paper` for the published form at its size. The 5M set of
           ILIAS: --config.benchmark.mini_ids=LIST.
Hardware:  meant for one GPU. A million features of width 1024 in fp16 are 2 GB; ROOT takes twice that while it is made.
Result:    not yet run here: the files were not at hand. The paper (arXiv 2505.21647) has 31.3 for the linear layer and
           50.0 for its own form, with image queries of SigLIP2 L/16 on all of ILIAS.

A run fits plain, static maps, PLDA and experts beside FORM, and validation chooses among them.
"""

from ml_collections import ConfigDict

from configs import features

ENCODER = "google/siglip2-large-patch16-512"


def get_config(argument: str = "") -> ConfigDict:
  """Returns the recipe for `ENCODER` or `ENCODER,FORM`: what differs from configs/features.py."""
  encoder, _, form = argument.partition(",")
  if form not in ("", "gated", "paper"):
    raise LookupError(f"configs/uned.py:{argument} names the form {form!r}; use gated or paper, after a comma")
  config = features.get_config()
  config.encoder.name = encoder or ENCODER
  config.form = form or "gated"
  config.trained.image = "always"
  config.train.steps = 4000
  config.train.batch_size = 1024
  if form == "paper":  # its sizes, as in configs/benchmark.py
    config.train.batch_size = 320
    config.semi_positives.keep = 10
  config.benchmark.name = "ilias"
  config.eval.methods = ("all",)
  return config
