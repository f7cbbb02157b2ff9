"""Adaptation × gallery → ranking: exact, wherever the gallery lies, and indexes."""
