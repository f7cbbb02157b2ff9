"""Measures a trained run:  python -m eval.main --config configs/demo.py --workdir runs/demo"""

from absl import app, flags
from ml_collections import config_flags

import configs
from qat_jax.runs import end_on_signals, explained
from qat_jax.stages import lock

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The recipe that the run was trained with.", lock_config=True)
flags.DEFINE_string("workdir", None, "The run's folder. Default: runs/<recipe>.")


def main(argv: list[str]) -> None:
  """Parses flags; `eval.pipeline.evaluate` does the work."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  from eval.pipeline import evaluate
  from eval.report.tables import table_text

  configs.warn_plainly()
  workdir = configs.workdir()
  with explained(), lock(workdir / "eval"):
    rows = evaluate(FLAGS.config, workdir)
  print(table_text(rows))
  print(f"report: {workdir / 'eval' / 'report.html'}")


if __name__ == "__main__":
  end_on_signals()
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=configs.parsed)
