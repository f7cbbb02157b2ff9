"""A gallery whose shards lie on the machines of a cluster."""

from qat_jax.distributed.gallery import Gallery
from qat_jax.distributed.gallery_shard import PartialRanking

__all__ = ["Gallery", "PartialRanking"]
