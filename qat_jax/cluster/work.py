"""The one loop beneath every stage: shards that are missing, and a function that makes one whole.

What a stage has made lies on disk, so the function returns no more than an account of it, and a shard that is made
twice is the same twice. On a cluster a copy of the function works on every node, on files that all nodes can read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from qat_jax.cluster.crew import make_all
from qat_jax.cluster.nodes import connect

LOCAL = "local"  # this process

Account = TypeVar("Account")


def run(make: Callable[[int], Account], shards: Sequence[int], cluster: str = LOCAL) -> Iterator[tuple[int, Account]]:
  """Yields each shard with what `make` returned of it, as soon as it is whole; in one process in the order given.

  `cluster` is "local", "auto" (the Ray cluster that this machine is in) or "ray://HOST:PORT". Raises what `make` does,
  and what `qat_jax.cluster.crew.make_all` says.
  """
  if cluster == LOCAL:
    for shard in shards:
      yield shard, make(shard)
  else:
    yield from make_all(make, shards, cluster)


def reach(cluster: str) -> None:
  """Raises as `qat_jax.cluster.nodes.connect` does unless the cluster is there, before any work is begun."""
  if cluster != LOCAL:
    connect(cluster)
