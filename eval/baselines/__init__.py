"""Baselines, one file each: `fit(train, validator)` gives a Baseline, or None where the data cannot fit it."""

from eval.baselines import diffusion, discriminant, expansion, linear, neighbours, whitening

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
