"""What a source of images and texts is, and the error of an image that cannot be read."""

from __future__ import annotations

from typing import Any, Protocol

# Metadata columns of a crop's box: shares of the picture's sides, 0 to 1.
BOX = ("box_left", "box_top", "box_right", "box_bottom")


class Source(Protocol):
  """N items, one record each; one whose records may change has `stamp(i)` too, all that decides what is read of i."""

  def __len__(self) -> int:
    """N."""

  def __getitem__(self, position: int, /) -> dict[str, Any]:
    """Returns the record of an item; raises UnreadableImage where its file cannot be read."""


class UnreadableImage(ValueError):
  """An image that cannot be decoded: the id of its item and why."""

  def __init__(self, id: str, reason: str) -> None:
    super().__init__(f"the image of {id!r} cannot be read: {reason}")
    self.id, self.reason = id, reason

  def __reduce__(self) -> tuple[type[UnreadableImage], tuple[str, str]]:
    return type(self), (self.id, self.reason)
