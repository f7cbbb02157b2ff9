"""The command `qat-jax`. An error is one line on stderr and status 1.

Each file beside this one has a group of commands; its `add` functions describe them to argparse. What needs an extra
of the package is imported when its command runs.
"""

import argparse
import sys
from collections.abc import Sequence

import qat_jax
from qat_jax.cli import duplicates, features, programs, searching, sharing
from qat_jax.cli.flags import Help
from qat_jax.runs import end_on_signals, in_one_line

COMMANDS = (
  features.add_extract,
  features.add_split,
  *programs.ADD,
  features.add_eight_bits,
  searching.add_rank,
  searching.add_serve,
  duplicates.add_duplicates,
  searching.add_migrate,
  searching.add_learn,
  sharing.add_convert,
  sharing.add_export,
  sharing.add_push,
)  # in the order of --help: the order in which one uses them


def command_line() -> argparse.ArgumentParser:
  """Returns the parser of the whole command line; the reference in the docs is made from it."""
  parser = argparse.ArgumentParser(
    prog="qat-jax",
    description="Query-adaptive retrieval with frozen features. `qat-jax COMMAND --help` has examples.",
    formatter_class=Help,
    allow_abbrev=False,
  )
  parser.add_argument("--version", action="version", version=f"qat-jax {qat_jax.__version__}")
  commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
  for add in COMMANDS:
    add(commands)
  return parser


def main(arguments: Sequence[str] | None = None) -> None:
  """Runs the command with the arguments (those of the process if None); ends the process if something is wrong."""
  if arguments is None:
    end_on_signals()
    arguments = sys.argv[1:]
  try:
    if programs.is_for_a_program(arguments):
      programs.become(arguments[0], arguments[1:])
    flags = vars(command_line().parse_args(arguments))
    run = flags.pop("run")
    print(run(**flags))
  except (ValueError, TypeError, OSError, KeyError, ImportError) as error:
    sys.exit(f"error: {in_one_line(error)}")
