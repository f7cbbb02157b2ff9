"""The first stage: a retrieval set on disk, as it was given or encoded from images and texts."""

from __future__ import annotations

import pathlib

from ml_collections import ConfigDict


def ensure(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
  """Returns the root of the retrieval set; encodes `config.data.source` into the working folder where there is none."""
  if config.data.root:
    return pathlib.Path(config.data.root)
  raise NotImplementedError
