"""The size and the shape of the code, as a command that CI runs: python -m tests.structure.

Prints lines of product and tests, the longest function and file, and public names that two folders define. Ends with
status 1 where a limit is exceeded.
"""

from __future__ import annotations

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PRODUCT = ("qat_jax", "train", "eval", "configs")
MOST_LINES = {"product": 20_500, "tests": 16_000}
CHECK_LINES = False  # True: the line limits are checked too, not only printed
LONGEST_FUNCTION, LONGEST_FILE = 60, 300  # lines; a function's include its decorators and its docstring


def files(*folders: str) -> dict[str, str]:
  """Returns the text of every Python file in folders, by its name."""
  paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
  return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def functions(texts: dict[str, str]) -> dict[str, int]:
  """Returns the lines of every function, by file and name."""
  return {
    f"{name}:{node.lineno} {node.name}": (node.end_lineno or 0) - node.lineno + 1 + len(node.decorator_list)
    for name, text in texts.items()
    for node in ast.walk(ast.parse(text))
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
  }


def names_taken_twice(texts: dict[str, str]) -> dict[str, list[str]]:
  """Returns public classes and functions of a module's top level that modules of two folders define."""
  places: dict[str, set[str]] = collections.defaultdict(set)
  for name, text in texts.items():
    for node in ast.parse(text).body:
      if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_") and node.name != "main":
        places[node.name].add(name.rpartition("/")[0])
  return {name: sorted(folders) for name, folders in sorted(places.items()) if len(folders) > 1}


def exceeded(lines: dict[str, int], longest_function: int, longest_file: int) -> list[str]:
  """Returns a text for each limit that is exceeded."""
  wrong = [
    f"{name} has {count:,} lines, {MOST_LINES[name]:,} at most"
    for name, count in lines.items()
    if CHECK_LINES and count > MOST_LINES[name]
  ]
  if longest_function > LONGEST_FUNCTION:
    wrong.append(f"a function has {longest_function} lines, {LONGEST_FUNCTION} at most")
  if longest_file > LONGEST_FILE:
    wrong.append(f"a file has {longest_file} lines, {LONGEST_FILE} at most")
  return wrong


def main() -> None:
  """Prints the figures; ends the program with status 1 where a limit is exceeded."""
  product, tests = files(*PRODUCT), files("tests")
  lines = {
    name: sum(map(len, map(str.splitlines, texts.values()))) for name, texts in (("product", product), ("tests", tests))
  }
  code = {name: text for name, text in product.items() if not name.startswith("configs/")}  # recipes are lists
  longest = max(functions(code).items(), key=lambda item: item[1])
  file = max(((name, len(text.splitlines())) for name, text in product.items()), key=lambda item: item[1])
  print(f"product {lines['product']:,} lines, tests {lines['tests']:,}")
  print(f"longest function {longest[1]} lines ({longest[0]}), longest file {file[1]} ({file[0]})")
  for name, folders in names_taken_twice(product).items():
    print(f"{name} is defined in {', '.join(folders)}")
  wrong = exceeded(lines, longest[1], file[1])
  if wrong:
    raise SystemExit("error: " + "; ".join(wrong))


if __name__ == "__main__":
  main()
