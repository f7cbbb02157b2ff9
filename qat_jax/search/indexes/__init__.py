"""Indexes of others behind the two verbs of `qat_jax.search.index`: one file each, its package imported on use."""
