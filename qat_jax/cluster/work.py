"""The loop of every stage: it calls a function for each missing shard, in this process or on a cluster.

The function writes its shard to disk and returns only an account of it; a shard that is made twice is the same twice.
On a cluster a copy of the function works on every node, with files that all nodes can read.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from qat_jax.cluster.crew import make_all
from qat_jax.cluster.nodes import connect

LOCAL = "local"  # this process

Account = TypeVar("Account")


def run(make: Callable[[int], Account], shards: Sequence[int], cluster: str = LOCAL) -> Iterator[tuple[int, Account]]:
  """Yields each shard with the account that `make` returned, as soon as the shard is whole.

  `cluster` is "local" (this process, in the given order), "auto" (the Ray cluster of this machine) or
  "ray://HOST:PORT". Raises the errors of `make` and of `qat_jax.cluster.crew.make_all`.
  """
  if cluster == LOCAL:
    for shard in shards:
      yield shard, make(shard)
  else:
    yield from make_all(make, shards, cluster)


def reach(cluster: str) -> None:
  """Raises the errors of `qat_jax.cluster.nodes.connect` if there is no cluster, before any work is begun."""
  if cluster != LOCAL:
    connect(cluster)
