"""The commands train and evaluate: doors to the programs of a checkout, which the wheel does not have.

This process becomes the program train.main or eval.main; the library imports neither.
"""

import argparse
import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import qat_jax
from qat_jax.cli.flags import add_command

PROGRAMS = {"train": "train.main", "evaluate": "eval.main"}
SUMMARIES = {
  "train": "Train an adapter by a recipe, as python -m train.main does.",
  "evaluate": "Measure a trained run and write its report, as python -m eval.main does.",
}
EXAMPLES = {
  "train": (
    "qat-jax train --config configs/demo.py --workdir runs/demo",
    "qat-jax train --config configs/features.py --config.data.root=retrieval_set --workdir runs/mine",
  ),
  "evaluate": ("qat-jax evaluate --config configs/demo.py --workdir runs/demo",),
}
HELP = ("-h", "--help")


def is_for_a_program(words: Sequence[str]) -> bool:
  """Says whether a command line is for a program to read; requests for help are answered here."""
  return bool(words) and words[0] in PROGRAMS and not set(HELP) & set(words)


def become(command: str, words: Sequence[str]) -> NoReturn:
  """Runs the program of a command in place of this process; raises ImportError if there is no checkout."""
  root, module = pathlib.Path(qat_jax.__file__).parents[1], PROGRAMS[command]
  if not (root / module.replace(".", "/")).with_suffix(".py").exists():
    raise ImportError(
      f"qat-jax {command} is python -m {module}, which an installed wheel does not have; clone the repository and run "
      "pip install -e '.[train,eval,encoders]' there"
    )
  sys.stdout.flush()
  paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
  os.execve(sys.executable, [sys.executable, "-m", module, *words], os.environ | {"PYTHONPATH": os.pathsep.join(paths)})


def _add(command: str, commands: argparse._SubParsersAction) -> None:
  """Adds a command for the sake of its help; `become` runs it."""
  parser = add_command(commands, command, SUMMARIES[command], EXAMPLES[command], functools.partial(become, command))
  parser.add_argument("--config", metavar="FILE", help="the recipe, a file in configs/")
  parser.add_argument("--workdir", metavar="FOLDER", help="where everything is written; by default runs/RECIPE")
  text = f"a value of the recipe; python -m {PROGRAMS[command]} --helpfull lists all flags"
  parser.add_argument("--config.SECTION.NAME", metavar="VALUE", help=text)


ADD: tuple[Callable[[argparse._SubParsersAction], None], ...] = tuple(
  functools.partial(_add, command) for command in PROGRAMS
)
