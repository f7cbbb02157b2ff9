"""The size and the shape of the code, as a command that CI runs: python -m tests.structure.

Prints lines of product and tests, the longest function and file, what exceeds a limit, and public names that two
folders define. With CHECKED, it ends with status 1 where a limit is exceeded.
"""

from __future__ import annotations

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PRODUCT = ("qat_jax", "train", "eval", "configs")
MOST_LINES = {"product": 20_500, "tests": 16_000}
CHECKED = False  # True: a limit that is exceeded ends the program with status 1; else it is only printed
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


def exceeded(lines: dict[str, int], function_lines: dict[str, int], file_lines: dict[str, int]) -> list[str]:
  """Returns a text for each limit that is exceeded, with what exceeds it."""
  limits = [(name, count, MOST_LINES[name]) for name, count in lines.items()]
  limits += [(name, count, LONGEST_FUNCTION) for name, count in function_lines.items()]
  limits += [(name, count, LONGEST_FILE) for name, count in file_lines.items()]
  return [f"{name} has {count:,} lines, {most:,} at most" for name, count, most in limits if count > most]


def main() -> None:
  """Prints the figures and what exceeds a limit."""
  product, tests = files(*PRODUCT), files("tests")
  lines = {
    name: sum(map(len, map(str.splitlines, texts.values()))) for name, texts in (("product", product), ("tests", tests))
  }
  code = {name: text for name, text in product.items() if not name.startswith("configs/")}  # recipes are lists
  function_lines, file_lines = functions(code), {name: len(text.splitlines()) for name, text in product.items()}
  print(f"product {lines['product']:,} lines, tests {lines['tests']:,}")
  for kind, counts in (("function", function_lines), ("file", file_lines)):
    longest = max(counts, key=lambda name: counts[name])
    print(f"longest {kind}: {counts[longest]} lines, {longest}")
  for name, folders in names_taken_twice(product).items():
    print(f"{name} is defined in {', '.join(folders)}")
  wrong = exceeded(lines, function_lines, file_lines)
  print("\n".join(wrong))
  raise SystemExit(1 if wrong and CHECKED else 0)


if __name__ == "__main__":
  main()
