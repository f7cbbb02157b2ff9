"""Trains an adapter:  python -m train.main --config configs/demo.py [--workdir runs/demo] [--config.train.steps=500]"""

import shlex
import sys

from absl import app, flags
from ml_collections import config_flags

import configs
from qat_jax.runs import end_on_signals, explained
from train.allocation import one_heap
from train.hosts.joining import ALL_AGAIN, joined, tell, words_alone

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "The recipe, a file in configs/.", lock_config=True)
flags.DEFINE_string("workdir", None, "Where everything goes; a run found there is continued. Default: runs/<recipe>.")
# On many hosts (docs/scale.md): the same command on each. Slurm, MPI and Kubernetes say the rest themselves.
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, for all processes; auto: JAX finds it (TPU slices).")
flags.DEFINE_integer("processes", None, "How many processes train together. 1: alone, whatever the environment says.")
flags.DEFINE_integer("process", None, "The number of this process, from 0.")
flags.DEFINE_integer("wait", 300, "Seconds in which all processes have to come.", lower_bound=1)


def main(argv: list[str]) -> None:
  """Parses flags; `train.pipeline.train` does the work."""
  if len(argv) > 1:
    raise app.UsageError(f"unknown arguments {argv[1:]}")
  from train.hosts import exchange
  from train.pipeline import train

  configs.warn_plainly()
  workdir = configs.workdir()
  with joined(FLAGS.coordinator, FLAGS.processes, FLAGS.process, FLAGS.wait), explained():
    exchange.check_start({"config": FLAGS.config.to_dict(), "processes": FLAGS.processes}, workdir)
    with exchange.locked(workdir):
      train(FLAGS.config, workdir)
    if exchange.first():
      print(f"adapter: {workdir / 'adapter'}")
      print(f"next: {shlex.join(['python', '-m', 'eval.main', *words_alone(sys.argv[1:])])}", flush=True)


if __name__ == "__main__":
  one_heap()
  end_on_signals(tell=lambda what: tell(f"was {what}; {ALL_AGAIN}"))
  flags.mark_flag_as_required("config")
  app.run(main, flags_parser=configs.parsed)
