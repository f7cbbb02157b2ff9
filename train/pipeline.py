"""The stages of training, in order: features → semi-positives → candidates → the validation gate → adapter.

A stage whose result is in the working folder is skipped. With several processes (`train.hosts`) the first runs a stage
and the others read its result; all train heads together.
"""

import functools
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict

from qat_jax.adapter import Adapter
from qat_jax.datasets.splits import sources
from qat_jax.datasets.views import VIEW
from qat_jax.features import leaks, mining
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit.training import Training
from qat_jax.planted import Planted
from qat_jax.runs import provenance
from qat_jax.stages import fingerprint
from qat_jax.validation import Validator
from train import check
from train.gate import choose, others
from train.hosts import exchange
from train.material import Material, off_words
from train.plan import candidates


def train(config: ConfigDict, workdir: pathlib.Path) -> Adapter:
  """Trains what the config asks for and returns the adapter, which is also in `workdir/adapter`."""
  check.config(config, jax.device_count())
  data = RetrievalSet.open(exchange.in_turn("features", lambda: features(config, workdir)))
  check.captions_width(config, data.width)
  types, made_from = servable(data), read_from(config, data)
  exchange.check_alike(f"what is in {data.root} on", made_from, "Give all hosts the same features")
  shared = exchange.sent("shared instances", lambda: leaks.check(data, config.data.allow_shared_instances))
  images, path = data.train_images, workdir / "semi_positives.npz"
  semi = exchange.in_turn("semi-positives", lambda: mining.ensure(config.semi_positives, images, path))
  made = any(VIEW in str(name) for name in images.ids)
  told = off_words(config, data)
  heads, chosen = {}, {}
  for query_type in types:
    of = functools.partial(Validator.of, data.split("val"), query_type, seed=config.seed)
    validator, gate = of(limit=config.validation.queries), of(limit=config.validation.gate_queries)
    material = Material(Training.of(data, query_type), data.train_texts, semi, validator, gate, made_from, made, told)
    fitted = candidates(config, material, workdir / "candidates" / query_type)
    chosen[query_type] = choose(query_type, fitted, gate, "off_words" if made and told else None)
    heads[query_type] = fitted[chosen[query_type]["name"]].head
    if exchange.first():
      print(f"{chosen[query_type]['account']}\n  all candidates: {others(chosen[query_type])}", flush=True)
  name, revision = data.encoder or (config.encoder.name, None)
  about = {"encoder": name, "revision": revision} if name else {}
  info = {
    "chosen": chosen,
    "shared": shared,
    **about,
    "made_from": made_from,
    **provenance(config.to_dict(), config.seed),
  }
  planted = {name: Planted.of(data.split("val"), name, seed=config.seed) for name in heads}
  adapter = Adapter(data.width, heads, info, planted)
  exchange.sent("the adapter", lambda: adapter.save(workdir / "adapter"))
  return adapter


def features(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Returns the root of the retrieval set; encodes `config.data.source` into the working folder if it is not there."""
  data, settings = config.data, config.encoder
  if data.root:
    return pathlib.Path(data.root)
  from qat_jax.encoders import load_encoder
  from qat_jax.features.extraction import extract

  # The sources come first, because they are the likeliest to be wrong.
  places = sources(data.source, data.name, data.folder or workdir / "data", data.limit, data.views)
  encoder = load_encoder(settings.name, settings.batch_size)
  images, unreadable = sum(len(source) for source, kinds in places.values() if "img" in kinds), 0
  for place, (source, kinds) in places.items():
    beside = (images - len(source) if "img" in kinds else images, unreadable)
    folder = workdir / "features" / place
    sizes = settings.batch_size, settings.rows_per_shard
    stores = extract(source, encoder, folder, kinds, *sizes, beside=beside, reuse=data.reuse or None)
    unreadable += stores[kinds[0]].meta["unreadable"]
  return workdir / "features"


def read_from(config: ConfigDict, data: RetrievalSet) -> dict[str, Any]:
  """Returns the fingerprint of the inputs that all candidates share: features, semi-positives, validation."""
  parts = data.fingerprint
  validation = {name: config.validation[name] for name in ("queries", "gate_queries")} | {"seed": config.seed}
  semi = dict(config.semi_positives) if config.semi_positives.keep else None
  return fingerprint(train=parts["train"], semi_positives=semi, val=parts["val"], validation=validation)


def servable(data: RetrievalSet) -> list[str]:
  """Returns the query types that can be trained and validated; raises ValueError if there are none."""
  able = {"image", *data.train_listed.queries, *(["text"] if data.train_texts is not None else [])}
  types = [t for t in data.query_types if t in able]
  if not types:
    raise ValueError(
      f"nothing to train on: {data.root} has text queries alone, and {data.train} no text_emb/, the captions of its "
      "images. Add it, or image_queries/ to val and test"
    )
  return types
