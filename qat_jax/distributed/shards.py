"""The one loop beneath every stage: shards that are missing, and a function that makes one whole.

What a stage has made lies on disk, so the function returns no more than an account of it, and a shard that is made
twice is the same twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

LOCAL = "local"  # this process

Account = TypeVar("Account")


def run(make: Callable[[int], Account], shards: Sequence[int], cluster: str = LOCAL) -> Iterator[tuple[int, Account]]:
  """Yields each shard with what `make` returned of it, as soon as it is whole; in one process in the order given."""
  if cluster != LOCAL:
    raise ValueError(f"cluster is {cluster!r}; wanted {LOCAL!r}")
  for shard in shards:
    yield shard, make(shard)
