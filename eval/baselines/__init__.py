"""Baselines that change the search, one file each; those that are a head lie in qat_jax/fit."""
