"""Baselines, one file each: `fit(train, validator)` gives a Baseline, or None where the data cannot fit it."""

from eval.baselines import neighbours
from eval.baselines.neighbours import image_bank, neighbour_residual, text_bank, tune_neighbours

__all__ = ["FITS", "image_bank", "neighbour_residual", "text_bank", "tune_neighbours"]

FITS = {"neighbours": neighbours.fit}
