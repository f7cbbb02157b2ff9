"""A prepared TFDS set of captioned images as a source, such as coco_captions; read without TensorFlow.

Some builders need TensorFlow to prepare their files, `tfds build NAME --file_format=array_record`. Reading the files
needs neither it nor the builder's code.
"""

import os
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import read_only_builder

from qat_jax.datasets import tables
from qat_jax.datasets.sources import checked_position


class TfdsSource:
  """Random access to a split of a set with the features of coco_captions: one row an image, or `captions` rows."""

  def __init__(self, name: str, split: str, data_dir: str | os.PathLike | None = None, captions: int = 1) -> None:
    """Opens a split of a set. Every image is an instance of its own.

    Args:
      name: of the set, such as "coco_captions/2014".
      split: "train", "train[:1000]", "train+val", ….
      data_dir: where sets are prepared; None: the default folder of TFDS.
      captions: rows of each image, which follow each other; its captions are repeated where it has fewer.

    Raises FileNotFoundError where the set is not prepared in `data_dir`, ValueError for a split or feature that it
    does not have, or files of a kind without random access.
    """
    builder = _open(name, data_dir)
    if captions < 1:
      raise ValueError(f"captions is {captions}; it must be at least 1")
    if missing := {"image", "image/id", "captions"} - set(builder.info.features):
      raise ValueError(f"{name} has no feature {sorted(missing)[0]!r}, only {sorted(builder.info.features)}")
    try:
      self.records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except NotImplementedError as error:
      kind = builder.info.file_format
      raise ValueError(
        f"{name} is prepared as {kind}, which has no random access; run `tfds build {name} --file_format=array_record`"
      ) from error
    except (ValueError, KeyError) as error:
      raise ValueError(f"{name} has no split {split!r}, only {sorted(builder.info.splits)}: {error}") from error
    self.captions = captions

  def __len__(self) -> int:
    return len(self.records) * self.captions

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of a row: id, image (encoded), caption, instance."""
    number, which = divmod(checked_position(position, self), self.captions)
    record = self.records[number]
    name = tables.texts(record["image/id"], "image/id")[0]
    captions = record["captions"]
    texts = tables.texts(captions["text"] if isinstance(captions, dict) else [one["text"] for one in captions], name)
    return {
      "id": name if self.captions == 1 else f"{name}-{which}",
      "image": record["image"],
      "caption": texts[which % len(texts)] if texts else None,
      "instance": name,
    }


def splits(name: str, data_dir: str | os.PathLike | None) -> list[str]:
  """Returns the names of a prepared set's splits; raises FileNotFoundError where it is not prepared."""
  return list(_open(name, data_dir).info.splits)


def _open(name: str, data_dir: str | os.PathLike | None) -> Any:
  """Returns the builder of prepared files, whatever its own code would need."""
  try:
    return read_only_builder.builder_from_files(name, data_dir=None if data_dir is None else os.fspath(data_dir))
  except tfds.core.DatasetNotFoundError as error:
    where = data_dir or "the default folder of TFDS"
    raise FileNotFoundError(
      f"no files of {name!r} in {where}; prepare them with `tfds build {name} --file_format=array_record` "
      "(many builders need `pip install tensorflow` for this one step)"
    ) from error
