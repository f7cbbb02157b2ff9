"""Recipes: one file each, whose docstring gives the command, the time it takes and the result to expect."""

import pathlib
import re
from logging import Formatter

from absl import app, flags, logging
from ml_collections import config_flags

from qat_jax.runs import explained


def parsed(argv: list[str]) -> list[str]:
  """Parses flags for app.run as absl does; a config that is no file, or lacks a key, ends the program in one line."""
  with explained():
    try:
      rest = app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
      raise ValueError(f"the config has no such key: {_message(error)}; configs/features.py has all") from error
    except LookupError as error:  # a recipe refuses its argument
      raise ValueError(_message(error)) from error
    recipe = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    if not pathlib.Path(recipe).is_file():
      raise FileNotFoundError(f"--config is {recipe!r}, and there is no such file; the recipes are in configs/")
  return rest


def warn_plainly() -> None:
  """Shows warnings alone, each without a time stamp and its place in the code."""
  logging.set_verbosity(logging.WARNING)
  logging.get_absl_handler().setFormatter(Formatter("%(message)s"))


def workdir() -> pathlib.Path:
  """Returns the working folder that the flags name; without one, runs/RECIPE, or runs/RECIPE_ARGUMENT."""
  path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
  words = re.findall(r"[\w.-]+", argument)
  return pathlib.Path(flags.FLAGS.workdir or f"runs/{'_'.join([pathlib.Path(path).stem, *words])}")


def _message(error: BaseException) -> str:
  """Returns the message of an error that may wrap another, on one line."""
  while error.args and isinstance(error.args[0], BaseException):
    error = error.args[0]
  return " ".join(str(error.args[0]).split())
