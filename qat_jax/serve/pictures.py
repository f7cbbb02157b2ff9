"""Pictures: those of items, by id alone, from one folder; and those that people send, within limits."""

import base64
import binascii
import collections
import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from qat_jax.datasets import SECOND, UnreadableImage
from qat_jax.datasets.files import IMAGES, VIDEOS
from qat_jax.datasets.pictures import decode, formats, opened
from qat_jax.datasets.tables import FILE_COLUMNS
from qat_jax.serve.collection.blocks import ADDED
from qat_jax.serve.collection.collection import Collection
from qat_jax.serve.limits import Refused, invalid
from qat_jax.stages import write_whole

BROWSERS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "AVIF": "avif"}
LONGEST_SIDE = 1 << 17  # pixels: twice what a JPEG can have; decoders and resizing take memory for each row and column
SIDE = 320  # of a thumbnail, its longer one
KEPT_BYTES = 64 << 20  # of thumbnails


class Pictures:
  """The pictures of items, files of one folder; nothing outside of it is ever opened."""

  def __init__(self, folder: str | os.PathLike | None, pixels: int) -> None:
    """Raises FileNotFoundError where the folder is missing; None: there are no pictures."""
    self.folder = None if folder is None else Path(folder).resolve()
    if self.folder is not None and not self.folder.is_dir():
      raise FileNotFoundError(f"no folder {folder}; give the one that holds the gallery's pictures")
    self.pixels = pixels
    self._thumbnails: collections.OrderedDict[Path, tuple[int, bytes]] = collections.OrderedDict()
    self._bytes, self._lock = 0, threading.Lock()

  def found(self, record: dict[str, Any]) -> Path | bytes:
    """Returns an item's picture, a file or its bytes; raises Refused (404) where there is none."""
    second, video = (record["metadata"].get(name) for name in (SECOND, "picture"))
    told = self.folder is not None and isinstance(second, float) and isinstance(video, str)
    if told and (path := self._inside(video, VIDEOS)):
      from qat_jax.datasets.frames import frame_at

      with contextlib.suppress(ValueError, OSError, ImportError):
        return frame_at(str(path), path.stat().st_mtime_ns, second)
    return self.path(record)

  def path(self, record: dict[str, Any]) -> Path:
    """Returns the file of an item's record; raises Refused (404) where there is none.

    It is what a column such as image_path names, or the id, with one of the endings of pictures.
    """
    if self.folder is not None:
      for name in _names(record):
        if (path := self._inside(name)) is not None:
          return path
    raise Refused(404, "no_picture", f"there is no picture of {record['id'][:200]!r}")

  def thumbnail(self, record: dict[str, Any]) -> bytes:
    """Returns a small JPEG of an item's picture, kept for the next time; Refused (404) where it cannot be read."""
    found = self.found(record)
    path = found if isinstance(found, Path) else Path(record["id"])
    try:
      changed = hash(found) if isinstance(found, bytes) else found.stat().st_mtime_ns
      with self._lock:
        if path in self._thumbnails and self._thumbnails[path][0] == changed:
          self._thumbnails.move_to_end(path)
          return self._thumbnails[path][1]
      picture = read(found if isinstance(found, bytes) else found.read_bytes(), self.pixels)
    except (OSError, Refused) as error:
      raise Refused(404, "no_picture", f"the picture of {record['id'][:200]!r} cannot be read") from error
    picture.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    data = buffer.getvalue()
    with self._lock:
      before = self._thumbnails.pop(path, None)
      self._thumbnails[path] = changed, data
      self._bytes += len(data) - (len(before[1]) if before else 0)
      while self._bytes > KEPT_BYTES:
        self._bytes -= len(self._thumbnails.popitem(last=False)[1][1])
    return data

  def _inside(self, name: str, endings: tuple[str, ...] = IMAGES) -> Path | None:
    """Returns the file of a name within the folder, links followed; None where it is outside, or no picture's."""
    assert self.folder is not None
    if "\0" in name or Path(name).suffix.lower() not in endings:
      return None
    try:
      path = (self.folder / name).resolve()
      return path if path.is_relative_to(self.folder) and path.is_file() else None
    except (OSError, ValueError):  # a name that the system does not take
      return None


def read(data: bytes, pixels: int) -> Image.Image:
  """Returns the bytes of a picture as RGB, upright; raises Refused (422) for what is none, or is too large.

  The header tells the size before anything is unpacked.
  """
  try:
    image = opened(data)
    width, height = image.size
    if width * height > pixels:
      raise invalid(f"the picture has {width}×{height} pixels; at most {pixels:,} are read: make it smaller")
    if max(width, height) > LONGEST_SIDE:
      raise invalid(f"the picture has {width}×{height} pixels; a side may have {LONGEST_SIDE:,}: cut it into parts")
    return decode({"id": "the picture", "image": image})
  except Refused:
    raise
  except UnreadableImage as error:
    raise invalid("the picture is damaged or cut short; send another") from error
  except Exception as error:  # broken headers make Pillow raise anything
    raise invalid(f"this is no picture that can be read; send one of {', '.join(formats())}") from error


def from_base64(text: str) -> bytes:
  """Returns what base64 says, bare or as a data: address; raises Refused (422) for anything else."""
  if text.startswith("data:"):
    text = text.partition(",")[2]
  try:
    return base64.b64decode("".join(text.split()), validate=True)
  except (binascii.Error, ValueError) as error:
    raise invalid("image is no base64 of a picture's bytes") from error


class Stored(Pictures):
  """The pictures of a collection's items; what was added lies in a folder of its own, under its content's digest."""

  def __init__(
    self,
    folder: str | os.PathLike | None,
    pixels: int,
    added: Path,
    collection: Collection,
    source: Callable[[str], bytes | None],
  ) -> None:
    """Takes the places that pictures may lie in.

    Args:
      folder: that the source's files lie in; None: there is none.
      pixels: that a picture may have.
      added: the folder of what was added by the API.
      collection: says which items were added by the API.
      source: id → the bytes of its picture, of sources that are no files.
    """
    super().__init__(folder, pixels)
    self.added, self.collection, self.source = added, collection, source

  def found(self, record: dict[str, Any]) -> Path | bytes:
    """Returns an item's picture; for what was added no name that came from a client is looked up."""
    item = self.collection.get(record["id"])
    if item is not None and item.stamp == ADDED:
      path = next(iter(self.added.glob(f"{item.content}.*")), None) if item.content else None
      if path is None:
        raise Refused(404, "no_picture", f"there is no picture of {record['id'][:200]!r}")
      return path
    data = self.source(record["id"]) if self.folder is None else None
    return self.path(record) if data is None else data

  def keep(self, content: str, data: bytes) -> None:
    """Keeps the bytes of a picture under their digest; raises OSError where the disk does not take them."""
    self.added.mkdir(parents=True, exist_ok=True)
    if next(iter(self.added.glob(f"{content}.*")), None) is None:
      ending = media_type(data).partition("/")[2]
      write_whole(self.added / f"{content}.{ending if ending.isalnum() else 'picture'}", data)


def media_type(picture: Path | bytes) -> str:
  """Returns the Content-Type of a picture, by what is in it, whatever its ending says.

  What browsers do not show, such as a TIFF, is only to be saved.
  """
  try:
    with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=formats()) as image:
      return f"image/{BROWSERS[image.format or '']}"
  except Exception:  # broken headers make Pillow raise anything
    return "application/octet-stream"


def _names(record: dict[str, Any]) -> Iterator[str]:
  """Yields what the file of an item may be called."""
  about = record["metadata"]
  for column in FILE_COLUMNS:
    if isinstance(about.get(column), str):
      yield about[column]
  for name in (about.get("picture"), record["id"]):  # of a crop the picture that it is of
    if isinstance(name, str):
      yield name
      yield from (name + ending for ending in IMAGES)
