"""What can be known to be wrong of an evaluation before any long work: methods, shortlist, benchmark."""

from ml_collections import ConfigDict

from eval import methods
from eval.benchmarks import official

SPLITS = ("test", "val")


def check_config(config: ConfigDict) -> None:
  """Raises ValueError where the config has an unknown method or benchmark, or a number without meaning."""
  methods.chosen_methods(config.eval.methods)
  if config.eval.shortlist < 1:
    raise ValueError(f"config.eval.shortlist is {config.eval.shortlist}; wanted a number above 0")
  if config.eval.queries < 0:
    raise ValueError(f"config.eval.queries is {config.eval.queries}; give 0 for all, or a number above 0")
  if config.benchmark.split not in SPLITS:
    raise ValueError(f"config.benchmark.split is {config.benchmark.split!r}; use one of {', '.join(SPLITS)}")
  if config.benchmark.name:
    official.check_files(official.BenchmarkFiles(**config.benchmark))
