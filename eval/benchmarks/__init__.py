"""Benchmarks: official files to queries, gallery and relevance; one small file each."""
