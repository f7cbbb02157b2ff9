"""Measuring retrieval: benchmarks, metrics, baselines, latency, reports."""
