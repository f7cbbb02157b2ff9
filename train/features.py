"""The first stage: a retrieval set on disk, as it was given or encoded from images and texts."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict

from qat_jax.datasets.splits import sources


def ensure(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Returns the root of the retrieval set; encodes `config.data.source` into the working folder where it is not yet."""
  data, settings = config.data, config.encoder
  if data.root:
    return pathlib.Path(data.root)
  from qat_jax.encoders import load_encoder
  from qat_jax.features.extraction import extract

  places = sources(
    data.source, data.name, data.folder or workdir / "data", data.limit
  )  # first: it is what may be wrong
  encoder = load_encoder(settings.name, settings.batch_size)
  for place, (source, kinds) in places.items():
    extract(source, encoder, workdir / "features" / place, kinds, settings.batch_size, settings.rows_per_shard)
  return workdir / "features"
