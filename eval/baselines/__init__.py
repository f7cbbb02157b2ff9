"""Baselines, one file each: `fit(train, validator)` gives a Baseline, or None where the data cannot fit it."""

from eval.baselines import diffusion, discriminant, expansion, linear, neighbours, whitening
from eval.baselines.neighbours import image_bank, neighbour_residual, text_bank, tune_neighbours

__all__ = ["FITS", "image_bank", "neighbour_residual", "text_bank", "tune_neighbours"]

FITS = {
  "neighbours": neighbours.fit,
  "whitening": whitening.fit,
  "lda": discriminant.fit_both,
  "lda_query": discriminant.fit_query,
  "ilias_linear": linear.fit,
  "query_expansion": expansion.fit,
  "diffusion": diffusion.fit,
  "diffusion_shortlist": diffusion.fit_shortlist,
}
