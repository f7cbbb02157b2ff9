"""A gallery whose shards lie on the machines of a cluster."""

from qat_jax.distributed.gallery import Gallery, PartialRanking

__all__ = ["Gallery", "PartialRanking"]
