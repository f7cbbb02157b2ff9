"""WebDataset tar shards as a source with random access: members of one name are a record, `0001.jpg`, `0001.txt`, ….

A shard's headers are read once, when it is opened; after that an item is one read of its bytes, here or over the net.
"""

from __future__ import annotations

import bisect
import json
import logging
import os
import tarfile
from typing import Any

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.files import File, listed, splits_of, stems
from qat_jax.datasets.folder import IMAGES

CAPTIONS = ("txt", "caption", "text")  # endings of a caption's member

_log = logging.getLogger(__name__)
_Member = tuple[int, int]  # where its bytes begin, and how many there are


class WebdatasetSource:
  """The images of tar shards, in the order of shards and members; ids are SHARD/KEY.

  A caption is a member .txt, or a field of the member .json, as are instance and split; other simple fields of the
  .json come along. A shard whose name begins with train, val or test says its split, where all of them do.
  """

  def __init__(self, where: str | os.PathLike) -> None:
    """Reads the headers of the shards: a folder, a file, a pattern with *, or an address that fsspec opens.

    Raises FileNotFoundError where there are none, ValueError for a compressed tar (which has no random access), one
    that is none, or no images at all. A shard that was cut short gives what it has; a line of the log names it.
    """
    self.shards = listed(where, ".tar")
    self.names, self.splits = stems(self.shards, ".tar"), splits_of(self.shards)
    self.keys: list[list[str]] = []
    self.members: list[list[dict[str, _Member]]] = []
    for shard in self.shards:
      records = {key: members for key, members in _records(shard).items() if _image_of(members)}
      self.keys.append(list(records))
      self.members.append(list(records.values()))
    self.starts = [0]
    for keys in self.keys:
      self.starts.append(self.starts[-1] + len(keys))
    if not len(self):
      raise ValueError(f"the {len(self.shards)} tar shards at {where} hold no images; known are {', '.join(IMAGES)}")

  def __len__(self) -> int:
    return self.starts[-1]

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of an item without its image, which is not looked at."""
    shard, row = self._place(position)
    members = self.members[shard][row]
    fields, texts = self._fields(shard, row), [members[ending] for ending in CAPTIONS if ending in members]
    caption = fields.get("caption", fields.get("text"))
    if texts:
      caption = self.shards[shard].read(*texts[0]).decode("utf-8", "replace").strip()
    instance = fields.get("instance")
    own = {
      "id": self._name(shard, row),
      "caption": None if caption in (None, "") else str(caption),
      "instance": None if instance in (None, "") else str(instance),
    }
    split = fields.get("split", self.splits[shard])
    return {**fields, **own, **({} if split is None else {"split": split})}

  def stamp(self, position: int) -> dict[str, Any]:
    """Returns what changes when an item does: its place, and size and date of its shard. Reads nothing."""
    shard, row = self._place(position)
    file = self.shards[shard]
    return {"id": self._name(shard, row), "members": self.members[shard][row], "file": (file.size, file.changed)}

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of an item: id, image (encoded), caption, instance, further fields.

    Raises UnreadableImage where its bytes are not all there, or its .json is none.
    """
    record = self.about(position)
    shard, row = self._place(position)
    members, file = self.members[shard][row], self.shards[shard]
    last = max(start + length for start, length in members.values())
    if last > file.size:
      raise UnreadableImage(record["id"], f"{file.name} was cut short: it has {file.size} of {last} bytes")
    if "json" in members and not self._fields(shard, row):
      raise UnreadableImage(record["id"], "its .json is no object with fields")
    try:
      image = file.read(*_image_of(members))  # type: ignore[misc]
    except OSError as error:
      raise UnreadableImage(record["id"], error.strerror or str(error)) from error
    return {**record, "image": image}

  def _fields(self, shard: int, row: int) -> dict[str, Any]:
    """Returns the simple fields of a record's .json; none where there is none, or it cannot be read."""
    member = self.members[shard][row].get("json")
    try:
      content = json.loads(self.shards[shard].read(*member)) if member else {}
      return {name: value for name, value in content.items() if type(value) in (str, int, float, bool)}
    except (ValueError, AttributeError):
      return {}

  def _place(self, position: int) -> tuple[int, int]:
    if not 0 <= position < len(self):
      raise IndexError(f"position {position} asked of a source of {len(self)}")
    shard = bisect.bisect_right(self.starts, position) - 1
    return shard, position - self.starts[shard]

  def _name(self, shard: int, row: int) -> str:
    return f"{self.names[shard]}/{self.keys[shard][row]}"


def _records(shard: File) -> dict[str, dict[str, _Member]]:
  """Returns key → ending → where a member's bytes lie, of every record of a shard, in order."""
  found: dict[str, dict[str, _Member]] = {}
  with shard.open() as file:
    try:
      tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except tarfile.ReadError as error:
      if shard.size == 0 or file.seek(0) or file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise ValueError(
          f"{shard.path} is empty or compressed; give plain .tar files, which can be read anywhere"
        ) from error
      raise ValueError(f"{shard.path} is no tar file ({error}); write it again or leave it out") from error
    try:
      while (member := tar.next()) is not None:
        if member.isfile():
          folder, _, name = member.name.rpartition("/")
          key, _, ending = name.partition(".")
          found.setdefault(f"{folder}/{key}".strip("/"), {})[ending.lower()] = (member.offset_data, member.size)
        tar.members = []  # type: ignore[attr-defined]  # it would keep every one
    except tarfile.ReadError as error:
      _log.warning("%s was cut short after %d records (%s); the rest of it is missing", shard.path, len(found), error)
  return found


def _image_of(members: dict[str, _Member]) -> _Member | None:
  return next((members[ending] for ending in members if f".{ending.rsplit('.', 1)[-1]}" in IMAGES), None)
