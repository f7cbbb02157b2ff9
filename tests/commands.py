"""The commands and snippets that the documents, docstrings and notebooks show; see docs_test.py."""

import ast
import itertools
import json
import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
NOTEBOOKS = sorted((ROOT / "colab").glob("*.ipynb"))
CODE = sorted(path for package in ("qat_jax", "train", "eval", "configs") for path in (ROOT / package).rglob("*.py"))
# A command begins so, and ends with its line, its quotes, or where the sentence around it goes on.
START = re.compile(r"(?<![\w./-])python -m [\w.]+|(?:(?<=`)|(?<=^    )|(?<=Command:   ))(?:qat-jax|make) (?=[a-z-])")
END = re.compile(r"`|\s{2,}|[;,:]\s|\.\s|\.$|\)|\s\(|\s[#&|>]|\"\"\"")


class Command(NamedTuple):
  """A command as it is written somewhere, in words."""

  where: str
  words: tuple[str, ...]


def texts(path: pathlib.Path) -> list[str]:
  """Returns the prose of a page, the docstrings of a module, or the markdown cells of a notebook."""
  if path.suffix == ".md":
    return [path.read_text()]
  if path.suffix == ".ipynb":
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
  documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
  nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
  return [found for node in nodes if (found := ast.get_docstring(node))]


def commands() -> list[Command]:
  """Returns every command shown anywhere; what is optional, in brackets, counts as given."""
  found = []
  made = {ROOT / "docs/commands.md", ROOT / "docs/config.md"}  # from the code, whose own tests try the examples
  for path in (*(page for page in PAGES if page not in made), *NOTEBOOKS, *CODE):
    for text in texts(path):
      # a command may go on after a backslash; in prose, between backticks, after the line's end
      text = re.sub(r"\s*\\\n\s*", " ", text)
      text = re.sub(r"`[^`\n]+\n[^`\n]+`", lambda match: match[0].replace("\n", " "), text)
      for pattern in (r"^ *(\w+)=\"([^\"]*)\"$", r"^ *for (\w+) in (\w+)"):  # a shell's variables
        for name, value in re.findall(pattern, text, re.MULTILINE):
          text = text.replace(f"${name}", value)
      for line in text.splitlines():
        for match in START.finditer(line):
          tail = re.sub(r"(python -m [\w.]+)\s+", r"\1 ", line[match.start() :])
          end = END.search(tail)
          shown = tail[: end.start()] if end else tail
          try:
            words = shlex.split(re.sub(r"[\[\]…]", " ", shown))
          except ValueError:  # a quote that the sentence opened
            continue
          found.append(Command(path.relative_to(ROOT).as_posix(), tuple(words)))
  return [command for command, _ in itertools.groupby(sorted(set(found)))]


def snippets() -> list[tuple[str, str]]:
  """Returns where and what of every Python snippet of the pages."""
  found = []
  for path in PAGES:
    blocks = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    found += [(f"{path.relative_to(ROOT).as_posix()}:{i}", block) for i, block in enumerate(blocks)]
  return found
