"""Beyond one machine: the loop beneath the stages, and galleries whose shards lie on the nodes of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from qat_jax.distributed.gallery import Gallery, PartialRanking

__all__ = ["Gallery", "PartialRanking"]


def __getattr__(name: str) -> Any:
  """Imports on use what rests on the stages, which rest on this package."""
  if name in __all__:
    from qat_jax.distributed import gallery

    return getattr(gallery, name)
  raise AttributeError(f"module 'qat_jax.distributed' has no attribute {name!r}")
