"""WebDataset tar shards as a source with random access: members of one name are a record, `0001.jpg`, `0001.txt`, ….

A shard's headers are read once, when it is opened; after that an item is one read of its bytes, here or over the net.
"""

import collections
import logging
import os
import posixpath
import re
import tarfile
from typing import Any

from qat_jax.datasets import tables
from qat_jax.datasets.files import IMAGES, File, LeftOut, Shards, hidden, opened_endings

CAPTIONS = ("txt", "caption", "text")  # endings of a caption's member
WORD = re.compile(r"[A-Za-z_][\w-]*")  # a part of an ending: `depth` in 0.depth.png, not ` Who` in Dr. Who.jpg
DIGITS = re.compile(r"\d+")
NAME = re.compile(r"[A-Z][a-z].*")  # a part that is rather a name: `Paul` in St.Paul.jpg

_log = logging.getLogger(__name__)
_Member = tuple[int, int]  # where its bytes begin, and how many there are


class WebdatasetSource(Shards):
  """The images of tar shards, in the order of shards and members; ids are SHARD/KEY.

  A caption is a member .txt, or a field of the member .json, as are instance and split; other simple fields of the
  .json come along.
  """

  def __init__(self, where: str | os.PathLike) -> None:
    """Reads the headers of the shards: a folder, a file, a pattern with *, or an address that fsspec opens.

    Raises FileNotFoundError where there are none, ValueError for a compressed tar (which has no random access), one
    that is none, or no images at all. A shard that was cut short gives what it has; a line of the log names it.
    """
    super().__init__(where, ".tar")
    self.keys: list[list[str]] = []
    self.members: list[list[dict[str, _Member]]] = []
    for file in self.shards:
      records = _chosen(_records(file, self.left_out), file.name, self.left_out)
      self.keys.append(list(records))
      self.members.append(list(records.values()))
    self.number(map(len, self.keys))
    if not len(self):
      told = "; ".join([f"known are {', '.join(IMAGES)}", *self.left_out.lines()])
      raise ValueError(f"the {len(self.shards)} tar shards at {where} hold no images; {told}")
    shard, row = self.place(0)
    fields = self._fields(shard, row)[0]
    self.left_out.add_columns([fields], captioned="text" in self.members[shard][row])
    self.left_out.add("fields called id, as items of tars are named by shard and member", {"id"} & fields.keys())

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of an item without its image, which is not looked at; without fields that cannot be read."""
    shard, row = self.place(position)
    members, file = self.members[shard][row], self.shards[shard]
    where, fields = f"{file.path}, {self.keys[shard][row]!r}", self._fields(shard, row)[0]
    record = tables.described(fields, self._name(shard, row), where, self.splits[shard], ids=())
    if "text" in members:
      text = tables.decoded(file.read(*members["text"]), f"{where}, its text")
      record["caption"] = next(iter(tables.texts(text, where)), record["caption"])
    return record

  def stamp(self, position: int) -> dict[str, Any]:
    """Returns what changes when an item does: its place, and size and date of its shard. Reads nothing."""
    shard, row = self.place(position)
    file = self.shards[shard]
    return {"id": self._name(shard, row), "members": self.members[shard][row], "file": (file.size, file.changed)}

  def _image(self, position: int) -> bytes:
    shard, row = self.place(position)
    members, file = self.members[shard][row], self.shards[shard]
    last = max(start + length for start, length in members.values())
    if last > file.size:
      raise OSError(f"{file.name} was cut short: it has {file.size} of {last} bytes")
    if reason := self._fields(shard, row)[1]:
      raise OSError(reason)
    return file.read(*members["image"])

  def _fields(self, shard: int, row: int) -> tuple[dict[str, Any], str]:
    """Returns the fields of a record's .json, and why it cannot be read, if so; ValueError where it is not UTF-8."""
    if (member := self.members[shard][row].get("json")) is None:
      return {}, ""
    file = self.shards[shard]
    text = tables.decoded(file.read(*member), f"{file.path}, {self.keys[shard][row]!r}, its .json")
    try:
      return tables.parse_object(text, f"its .json in {file.name}"), ""
    except ValueError as error:
      return {}, str(error)

  def _name(self, shard: int, row: int) -> str:
    return f"{self.names[shard]}/{self.keys[shard][row]}"


def _records(shard: File, left_out: LeftOut) -> dict[str, dict[str, _Member]]:
  """Returns key → ending → where a member's bytes lie, of every record of a shard, in order."""
  records: dict[str, dict[str, _Member]] = {}
  with shard.open() as file:
    try:
      tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
    except tarfile.ReadError as error:
      if shard.size == 0 or file.seek(0) or file.read(2) in (b"\x1f\x8b", b"BZ", b"\xfd7", b"\x28\xb5"):
        raise ValueError(
          f"{shard.path} is empty or compressed; give plain .tar files, which can be read anywhere"
        ) from error
      raise ValueError(f"{shard.path} is no tar file ({error}); write it again or leave it out") from error
    while (member := _next_member(tar, file, shard, left_out)) is not None:
      key, ending = cut(member.name)
      if not tables.is_utf8(member.name):
        raise ValueError(
          f"{shard.path} has a member {member.name!r}, which is not UTF-8; write the tar with UTF-8 names"
        )
      if member.isdir():
        continue
      elif hidden(member.name) or not ending:
        left_out.add_file(f"{shard.name}/{member.name}")
      elif not member.isfile() or member.issparse():
        left_out.add("links, devices and sparse files in tars", [f"{shard.name}/{member.name}"])
      else:
        endings = records.setdefault(key, {})
        if ending in endings:
          left_out.add("members that occur twice, of which the last counts", [f"{shard.name}/{member.name}"])
        endings[ending] = (member.offset_data, member.size)
  return records


def _next_member(tar: tarfile.TarFile, file: Any, shard: File, left_out: LeftOut) -> tarfile.TarInfo | None:
  """Returns the next member of a file of one or more tars, None at its end; notes one that ends before its end mark."""
  tar.members = []  # type: ignore[attr-defined]  # it would keep every one
  try:
    while (member := tar.next()) is None:
      following = _after_zeros(file, tar.offset)
      if following is None and tar.offset < shard.size:
        return None
      if following in (None, tar.offset):
        raise tarfile.ReadError(f"no member and no end mark at byte {tar.offset}")
      tar.offset = following  # of the next tar
    return member
  except tarfile.ReadError as error:
    _log.warning("%s was cut short or is damaged (%s); the rest of it is missing", shard.path, error)
    left_out.add("tars that were cut short or are damaged, of which the rest is missing", [shard.name])
    return None


def _after_zeros(file: Any, start: int) -> int | None:
  """Returns where the first block from `start` on begins that is not all zeros, None where all are."""
  file.seek(start)
  while data := file.read(1 << 16):
    if rest := data.lstrip(b"\0"):
      return start + (len(data) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
    start += len(data)
  return None


def cut(path: str) -> tuple[str, str]:
  """Returns key and ending (lower case) of a member: an ending is the words after periods at its end.

  ./0.depth.png is 0 and depth.png; Mug 2.0 (front).jpg is Mug 2.0 (front) and jpg.
  """
  folder, _, name = posixpath.normpath(path).rpartition("/")
  parts = name.split(".")
  first = len(parts) - 1
  while first > 1 and WORD.fullmatch(parts[first - 1]):
    first -= 1
  key = ".".join(parts[:first]) if first else name
  ending = [part if NAME.fullmatch(part) else part.lower() for part in parts[first:-1]] + [parts[-1].lower()]
  return f"{folder}/{key}".strip("/"), ".".join(ending) if first else ""


def _chosen(records: dict[str, dict[str, _Member]], shard: str, left_out: LeftOut) -> dict[str, dict[str, _Member]]:
  """Returns the records that have a picture: where `image`, `text` and `json` lie. The rest is left out, and named.

  The picture is the one with a plain ending, else the first. Where no ending is plain and several pictures have texts
  of their own, or names or numbers without a text in common, each is a record: St.Paul.jpg and St.Peter.jpg, a.v2.jpg
  and a.v3.jpg.
  """
  chosen = {}
  for key, endings in records.items():
    images = [ending for ending in endings if f".{ending.rpartition('.')[2]}" in opened_endings()]
    plain = [ending for ending in images if "." not in ending]
    common = plain or [ending for ending in (*CAPTIONS, "json") if ending in endings]
    alike = collections.Counter(DIGITS.sub("", image) for image in images)
    named = lambda e, common=common, alike=alike: not common and (NAME.match(e) or alike[DIGITS.sub("", e)] > 1)
    told = lambda image, endings=endings: _text_of(image, endings) or f"{_stem(image)}json" in endings
    alone = [image for image in images if told(image) or named(image)] if not plain else []
    pictures = alone if len(alone) > 1 else (plain or images)[:1]
    taken: set[str] = set(pictures)
    for image in pictures:
      text = _text_of(image, endings) or next((ending for ending in CAPTIONS if ending in endings), None)
      about = next((ending for ending in (f"{_stem(image)}json", "json") if ending in endings), None)
      taken |= {text, about} - {None}  # type: ignore[arg-type]
      name = key if len(pictures) == 1 else f"{key}.{_stem(image)[:-1]}"
      places = {"image": image, "text": text, "json": about}
      chosen[name] = {what: endings[ending] for what, ending in places.items() if ending is not None}
    rest = {ending: f"{shard}/{key}.{ending}" for ending in endings if ending not in taken}
    for ending, name in rest.items():
      if ending in images:
        left_out.add("further pictures of records in tars", [name])
      elif ending.endswith(CAPTIONS):
        left_out.add("texts in tars that are no caption of a picture", [name])
      else:
        left_out.add_file(name)
  return chosen


def _stem(ending: str) -> str:
  """Returns an ending without its last part: `depth.` of depth.png."""
  return ending[: ending.rfind(".") + 1]


def _text_of(image: str, endings: dict[str, _Member]) -> str | None:
  """Returns the ending of a picture's own text: left.txt or left.png.txt beside left.png."""
  names = (f"{start}{ending}" for ending in CAPTIONS for start in (_stem(image), f"{image}."))
  return next((name for name in names if name in endings), None)
