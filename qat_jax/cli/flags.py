"""What the commands have in common: one style of help, and flags that several of them take."""

import argparse
from collections.abc import Callable, Sequence


class Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
  """Leaves the lines of descriptions and examples as they are, and shows the defaults of flags."""

  def _get_help_string(self, action: argparse.Action) -> str | None:
    if action.default in (None, False, True, []):  # nothing that a reader could type
      return action.help
    return super()._get_help_string(action)


def add_command(
  commands: argparse._SubParsersAction, name: str, summary: str, examples: Sequence[str], run: Callable[..., str]
) -> argparse.ArgumentParser:
  """Adds a command and returns its parser.

  Args:
    commands: where the command is added.
    name: the word after `qat-jax`.
    summary: a sentence for the list of commands and for the command's own help.
    examples: whole command lines; tests parse them.
    run: takes the flags by name, and returns the line to print.
  """
  parser = commands.add_parser(
    name,
    help=summary[0].lower() + summary[1:].removesuffix("."),
    description=summary,
    epilog="\n  ".join(["examples:", *examples]),
    formatter_class=Help,
    allow_abbrev=False,
  )
  parser.set_defaults(run=run)
  return parser


def place(word: str) -> str:
  """Returns the name of a file or folder to write; an empty one, as of an unset variable, is refused."""
  if not word:
    raise argparse.ArgumentTypeError("it is empty; give a folder or a file, `.` for the folder you are in")
  return word


def add_adapter(parser: argparse.ArgumentParser, required: bool = True) -> None:
  """Adds --adapter."""
  text = "a run's folder, or an exported adapter's"
  parser.add_argument("--adapter", metavar="FOLDER", required=required, help=text)


def add_gallery(parser: argparse.ArgumentParser) -> None:
  """Adds --gallery."""
  parser.add_argument("--gallery", metavar="FOLDER", required=True, help="a feature folder of the items to search")


def add_query_type(parser: argparse.ArgumentParser) -> None:
  """Adds --query-type, and its older spelling without a line in the help."""
  types, text = ["text", "image"], "the adapter's head to use; by default the type that the queries' folder says"
  parser.add_argument("--query-type", choices=types, help=text)
  parser.add_argument("--query_type", choices=types, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_cluster(parser: argparse.ArgumentParser) -> None:
  """Adds --cluster."""
  text = "where the work is done: local (this process), auto or ray://HOST:PORT (a Ray cluster, docs/scale.md)"
  parser.add_argument("--cluster", metavar="ADDRESS", default="local", help=text)
