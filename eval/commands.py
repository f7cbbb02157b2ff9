"""What the small programs of eval share: their flags, how they start and end, and the file that their figures go to."""

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qat_jax.runs import AGAIN, end_on_signals, explained
from qat_jax.stages import write_whole

SHARED: dict[str, dict[str, Any]] = {
  "--workdir": {"required": True, "type": Path, "help": "a run's folder, with features/ and adapter/"},
  "--split": {"choices": ["val", "test"], "default": "test"},
  "--json": {"type": Path, "help": "where to write the figures"},
}


def parser(name: str, text: str, *shared: str) -> argparse.ArgumentParser:
  """Returns a program's parser, whose help is a text, with the flags of SHARED that are named."""
  made = argparse.ArgumentParser(prog=name, description=text, formatter_class=argparse.RawTextHelpFormatter)
  for flag in shared:
    made.add_argument(flag, **SHARED[flag])
  return made


@contextlib.contextmanager
def started(
  parser: argparse.ArgumentParser, arguments: Sequence[str] | None, advice: str = AGAIN, passed_on: str | None = None
) -> Iterator[argparse.Namespace]:
  """Gives the flags of a program, and ends it in one line for bad input.

  Args:
    parser: of the flags.
    arguments: the words of the command line; None: those of the process, which signals then end.
    advice: the end of the line that a signal prints.
    passed_on: unknown words that begin so are for another program: `flags.passed_on`. None: there are none.
  """
  if arguments is None:
    end_on_signals(advice)
  flags, words = parser.parse_known_args(arguments)
  if passed_on is not None:
    flags.passed_on = words
  if wrong := [word for word in words if passed_on is None or not word.startswith(passed_on)]:
    others = f"; words for other programs begin with {passed_on}" if passed_on else ""
    parser.error(f"unknown arguments {' '.join(wrong)}{others}")
  with explained():
    yield flags


def write_figures(path: Path | None, figures: Any) -> None:
  """Writes figures as JSON, whole or not at all; nothing without a path."""
  if path is not None:
    write_whole(path, (json.dumps(figures, indent=2) + "\n").encode())
