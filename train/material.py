"""What the candidates of one query type are made from, and the candidate that a recipe tells in words."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from qat_jax import words
from qat_jax.encoders import load_encoder
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.fit import linear
from qat_jax.fit.training import Training
from qat_jax.models.head import Head
from qat_jax.types import SemiPositives, check_encoders
from qat_jax.validation import Validator


class OffWords(NamedTuple):
  """The head that leaves out the aspects that a recipe names. Its settings hold their phrases and the encoder."""

  settings: dict[str, Any]
  fit: Callable[[], Head]


class Material(NamedTuple):
  """What the candidates of one query type are made from and compared on."""

  training: Training
  captions: Any | None  # of the training images (ND), where there are any
  semi: SemiPositives | None
  validator: Validator  # for a head while it trains
  gate: Validator  # with more queries, for what is chosen once
  made_from: dict[str, Any]  # the fingerprint of all of them
  made_views: bool = False  # whether instances are pictures and views that were made of them
  off_words: OffWords | None = None  # where the recipe names aspects


def ignored(config: ConfigDict) -> dict[str, list]:
  """Returns the phrases of the aspects that the recipe ignores, by name.

  Raises ValueError for a name that its file does not have, and what `read_aspects` raises.
  """
  names, path = config.aspects.ignore, config.aspects.file
  if not names:
    return {}
  book = words.read_aspects(path or None)
  if unknown := [name for name in names if name not in book]:
    where = path or "the package's own file"
    raise ValueError(f"config.aspects.ignore names {unknown[0]!r}, which {where} lacks; use {', '.join(book)}")
  return {name: book[name] for name in dict.fromkeys(names)}


def off_words(config: ConfigDict, data: RetrievalSet) -> OffWords | None:
  """Returns the candidate that leaves out what the recipe ignores; None where it names nothing.

  Its phrases are encoded once, and only where the candidate is not there yet.
  """
  phrases = ignored(config)
  if not phrases:
    return None
  encoder = data.encoder or (config.encoder.name, None)
  if not encoder[0]:
    raise ValueError(
      f"config.aspects.ignore needs the encoder of the features, and those in {data.root} do not name it; "
      "give --config.encoder.name=NAME"
    )
  fit = functools.cache(lambda: linear.without(_rows(phrases, encoder, data.width)))
  return OffWords({"ignore": phrases, "encoder": list(encoder)}, fit)


def _rows(phrases: dict[str, list], name: tuple[str, str | None], width: int) -> dict[str, Any]:
  """Returns the rows (WD) of each aspect's phrases. Raises ValueError for an encoder that is not the features'."""
  here = name[0] == "toy_clip" or pathlib.Path(name[0]).is_dir()  # such an encoder has one state alone
  try:
    encoder = load_encoder(name[0], revision=None if here else name[1])
  except (OSError, ValueError) as error:
    raise ValueError(
      f"config.aspects.ignore needs the encoder of the features, {name[0]}, which cannot be loaded ({error}); "
      "make it available, or leave config.aspects.ignore empty"
    ) from error
  check_encoders("the retrieval set", name, "the encoder of the words", (encoder.name, encoder.revision))
  rows = {aspect: words.encode(values, encoder, aspect) for aspect, values in phrases.items()}
  for row_WD in rows.values():
    if row_WD.shape[1] != width:
      raise ValueError(f"the encoder {name[0]} is {row_WD.shape[1]} wide, the features {width}; give their own encoder")
  return rows
