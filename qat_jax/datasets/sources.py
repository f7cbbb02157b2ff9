"""What a source of images and texts is, and the error of an image that cannot be read."""

import collections
import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol, Self

# Metadata columns of a crop's box: shares of the picture's sides, 0 to 1.
BOX = ("box_left", "box_top", "box_right", "box_bottom")
SECOND = "second"  # the metadata column of a video's frame: when it is shown, from the video's beginning


class Source(Protocol):
  """N items, one record each; one whose records may change has `stamp(i)` too, all that decides what is read of i."""

  def __len__(self) -> int:
    """N."""

  def __getitem__(self, position: int, /) -> dict[str, Any]:
    """Returns the record of an item; raises UnreadableImage where its file cannot be read."""


def checked_position(position: int, source: Source) -> int:
  """Returns a position in a source; raises IndexError where it has no such item."""
  if not 0 <= position < len(source):
    raise IndexError(f"position {position} asked of a source of {len(source)}")
  return position


class Derived:
  """Items made of those of another source. It has `stamp` where that has, by `_stamp` of the other's stamp."""

  def __init__(self, source: Any) -> None:
    self.source = source
    self.left_out = {kind: list(names) for kind, names in getattr(source, "left_out", {}).items()}

  @property
  def stamp(self) -> Any:
    """The function that returns what changes when an item does; AttributeError where the source has none."""
    return functools.partial(self._stamp, self.source.stamp)

  def _stamp(self, stamp: Callable[[int], dict[str, Any]], position: int) -> dict[str, Any]:
    return stamp(position)


class Corpus:
  """Items whose pictures are read apart from what is said of them: `about` and `_image`."""

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of an item without its image, which is not looked at."""
    raise NotImplementedError

  def _image(self, position: int) -> bytes:
    """Returns the encoded image of an item; raises OSError where it cannot be read."""
    raise NotImplementedError

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of an item: id, image (encoded), caption, instance, further plain fields.

    Raises UnreadableImage where the image cannot be read; ValueError where text is not UTF-8.
    """
    record = self.about(position)
    try:
      return {**record, "image": self._image(position)}
    except OSError as error:
      raise UnreadableImage(record["id"], error.strerror or str(error)) from error


class Kept:
  """The last `size` results of a function of one argument. Threads that want the same one wait; a copy is empty."""

  def __init__(self, make: Callable[[Any], Any], size: int) -> None:
    self.make, self.size = make, size
    self._results: collections.OrderedDict[Any, tuple[threading.Lock, list[Any]]] = collections.OrderedDict()
    self._lock = threading.Lock()

  def __reduce__(self) -> tuple[type[Self], tuple[Callable[[Any], Any], int]]:
    return type(self), (self.make, self.size)

  def __call__(self, key: Any) -> Any:
    """Returns the function's result."""
    with self._lock:
      lock, result = self._results.setdefault(key, (threading.Lock(), []))
      self._results.move_to_end(key)
      if len(self._results) > self.size:
        self._results.popitem(last=False)
    with lock:
      if not result:
        result.append(self.make(key))
      return result[0]


class UnreadableImage(ValueError):
  """An image that cannot be decoded: the id of its item and why."""

  def __init__(self, id: str, reason: str) -> None:
    super().__init__(f"the image of {id!r} cannot be read: {reason}")
    self.id, self.reason = id, reason

  def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
    return type(self), (self.id, self.reason)
