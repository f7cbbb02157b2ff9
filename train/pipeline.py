"""The stages of training, in order: features → semi-positives → candidates → the validation gate → adapter.

A stage whose result is in the working folder is skipped.
"""

from __future__ import annotations

import pathlib

import jax
from ml_collections import ConfigDict

from eval import provenance
from qat_jax.adapter import Adapter
from qat_jax.features import mining
from qat_jax.features.retrieval_set import RetrievalSet
from train import check, features
from train.candidates import Training
from train.gate import choose
from train.plan import candidates


def train(config: ConfigDict, workdir: pathlib.Path) -> Adapter:
  """Trains what the config asks for and returns the adapter, which is also in `workdir/adapter`."""
  check.config(config, jax.local_device_count())
  data = RetrievalSet.open(features.ensure(config, workdir))
  semi = mining.ensure(config.semi_positives, data.train_images, workdir / "semi_positives.npz")
  heads, chosen = {}, {}
  for query_type in servable(data):
    training = Training.of(data, query_type, semi, config.validation.queries, config.seed)
    fitted = candidates(config, training, workdir / "candidates" / query_type)
    heads[query_type], chosen[query_type] = choose(fitted)
    print(account(query_type, chosen[query_type]), flush=True)
  adapter = Adapter(data.train_images.width, heads, {"chosen": chosen, **provenance.of(config)})
  adapter.save(workdir / "adapter")
  return adapter


def servable(data: RetrievalSet) -> list[str]:
  """Returns the query types that can be trained and validated; raises ValueError where there are none."""
  found = [t for t in data.split("val").queries if t == "image" or data.train_texts is not None]
  if not found:
    raise ValueError(
      f"nothing to train on: {data.root} has text queries alone, and {data.train} no text_emb/, the captions of its "
      "images. Add it, or image_queries/ to val and test"
    )
  return found


def account(query_type: str, chosen: dict) -> str:
  """Returns a line that says what serves a query type, and what the others reached on validation."""
  others = ", ".join(f"{name} {100 * value:.1f}" for name, value in chosen["val_map"].items())
  return f"{query_type} queries: {chosen['name']} serves (validation mAP × 100: {others})"
