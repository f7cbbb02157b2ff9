"""Writes docs/commands.md and docs/config.md from the code: python .ci/reference.py [--check]."""

import argparse
import ast
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import features  # noqa: E402
from qat_jax.cli import command_line  # noqa: E402

HEAD = "<!-- Made from the code by `python .ci/reference.py`; edit the code instead. -->\n"


def commands() -> str:
  """Returns the page of the command line: each command with its usage, options and examples."""
  lines = [
    f"# The command line\n\n{HEAD}",
    "`qat-jax COMMAND --help` prints the same. An error is one line and status 1.",
  ]
  (action,) = [a for a in command_line()._actions if isinstance(a, argparse._SubParsersAction)]
  summaries = {choice.dest: choice.help for choice in action._choices_actions}
  for name, parser in action.choices.items():
    lines += [f"\n## qat-jax {name}\n", parser.description or f"{summaries[name]}."]
    rows = [row for a in parser._actions if (row := option(a))]
    if rows:
      lines += ["\n| argument | default | meaning |", "|---|---|---|", *rows]
    if parser.epilog:
      lines += ["\n```text", parser.epilog.strip(), "```"]
  return "\n".join(lines) + "\n"


def option(action: argparse.Action) -> str | None:
  """Returns the row of one argument; None for --help and for arguments without help."""
  if action.help in (None, argparse.SUPPRESS) or isinstance(action, argparse._HelpAction):
    return None
  name = " ".join(action.option_strings) or str(action.metavar or action.dest)
  value = "" if action.nargs == 0 else "|".join(action.choices or ()) or str(action.metavar or "")
  default = (
    "required"
    if action.required
    else ""
    if action.default is None or isinstance(action.default, bool | list)
    else f"`{action.default}`"
  )
  shown = f"`{name} {value}`" if value and action.option_strings else f"`{name}`"
  return f"| {shown} | {default} | {action.help} |"


def config() -> str:
  """Returns the page of the recipe: each key with its default, under the comments of configs/features.py."""
  text = (ROOT / "configs/features.py").read_text()
  source = text.splitlines()
  (function,) = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
  values, lines, shown = features.get_config(), [], set()
  for statement in function.body:
    target = re.match(r"config\.([\w.]+) =", ast.unparse(statement))
    if not target:
      continue
    comments, row = [], statement.lineno - 2
    while source[row].strip().startswith("#"):
      comments.insert(0, source[row].strip(" #"))
      row -= 1
    if comments or not lines:
      lines += ["", " ".join(comments) or "Draws of every stage.", "", "| key | default | |", "|---|---|---|"]
    inline = re.search(r"  # (.+)$", source[statement.lineno - 1]) if statement.lineno == statement.end_lineno else None
    flat = [(key, value) for key, value in flattened(target[1], values) if key not in shown]
    remarks = {
      m[1]: m[2] for m in re.finditer(r'"(\w+)": [^#\n]+# (.+)', ast.get_source_segment(text, statement) or "")
    }
    single = set(re.findall(r"^  config\.([\w.]+) = [^C]", text, re.MULTILINE)) - {target[1]}
    flat = [(key, value) for key, value in flat if key not in single]
    shown |= {key for key, _ in flat}
    for key, value in flat:
      remark = remarks.get(key.split(".")[-1], inline[1] if inline else "")
      lines.append(f"| `config.{key}` | `{value!r}` | {remark} |")
  top = "Every key of a recipe, from configs/features.py. Set one with `--config.KEY=VALUE`; another key is refused."
  return f"# The recipe's keys\n\n{HEAD}\n{top}\n" + "\n".join(lines) + "\n"


def flattened(key: str, values: object) -> list[tuple[str, object]]:
  """Returns the keys below a key, with their defaults."""
  for part in key.split("."):
    values = values[part]  # type: ignore[index]
  if hasattr(values, "items"):
    return [row for name in values for row in flattened(f"{key}.{name}", features.get_config())]
  return [(key, values)]


def main() -> None:
  """Writes both pages; with --check it only compares, and ends with status 1 where one is old."""
  old = []
  for name, text in (("commands", commands()), ("config", config())):
    page = ROOT / f"docs/{name}.md"
    if "--check" not in sys.argv:
      page.write_text(text)
    elif not page.exists() or page.read_text() != text:
      old.append(page.name)
  if old:
    sys.exit(f"{' and '.join(old)} in docs/ differ from the code; run python .ci/reference.py")


if __name__ == "__main__":
  main()
