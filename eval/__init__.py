"""Measuring retrieval: benchmarks, metrics, baselines, latency, reports."""

from qat_jax import start as start
