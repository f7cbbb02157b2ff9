"""The size and the shape of the code, as a command that CI runs: python -m tests.structure.

Prints lines of product and tests, the longest function and file, and public names that two folders define. Ends with
status 1 where a limit is exceeded, and says what exceeds it.
"""

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PRODUCT = ("qat_jax", "train", "eval", "configs")
# No more than there is today: lower these with the code. 20,500 and 16,000 are wanted.
MOST_LINES = {"product": 37_060, "tests": 26_970}
MOST_NAMES = 15  # public names that two folders define; none is wanted that is no protocol
LONGEST_FUNCTION, LONGEST_FILE = 60, 300  # lines; a function's include its decorators and its docstring
# What exceeds these, and its lines. It may become shorter; nothing is added here.
LONGER = {
  "qat_jax/serve/batch.py rerank_files": 82,
  "qat_jax/serve/refined.py rank_refined": 68,
  "qat_jax/serve/web/server.py serve": 70,
  "train/loop.py train_head": 61,
  "qat_jax/distributed/gallery.py": 304,
}


def files(*folders: str) -> dict[str, str]:
  """Returns the text of every Python file in folders, by its name."""
  paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
  return {path.relative_to(ROOT).as_posix(): path.read_text() for path in paths}


def functions(texts: dict[str, str]) -> dict[str, int]:
  """Returns the lines of every function, by file and name; of several of one name the most."""
  counts: dict[str, int] = collections.Counter()
  for name, text in texts.items():
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        lines = (node.end_lineno or 0) - node.lineno + 1 + len(node.decorator_list)
        counts[f"{name} {node.name}"] = max(counts[f"{name} {node.name}"], lines)
  return counts


def names_taken_twice(texts: dict[str, str]) -> dict[str, list[str]]:
  """Returns public classes and functions of a module's top level that modules of two folders define."""
  places: dict[str, set[str]] = collections.defaultdict(set)
  for name, text in texts.items():
    for node in ast.parse(text).body:
      if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_") and node.name != "main":
        places[node.name].add(name.rpartition("/")[0])
  return {name: sorted(folders) for name, folders in sorted(places.items()) if len(folders) > 1}


def exceeded(lines: dict[str, int], function_lines: dict[str, int], file_lines: dict[str, int]) -> list[str]:
  """Returns a text for each limit that is exceeded, with what exceeds it, and for each exception that is past."""
  limits = [(name, count, MOST_LINES[name]) for name, count in lines.items()]
  for counts, most in ((function_lines, LONGEST_FUNCTION), (file_lines, LONGEST_FILE)):
    limits += [(name, count, LONGER.get(name, most)) for name, count in counts.items()]
    past = [name for name in LONGER if counts.get(name, most + 1) <= most]
    limits += [(f"LONGER has {name}, which", counts[name], counts[name] - 1) for name in past]
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
  names = names_taken_twice(product)
  for name, folders in names.items():
    print(f"{name} is defined in {', '.join(folders)}")
  wrong = exceeded(lines, function_lines, file_lines)
  if len(names) > MOST_NAMES:
    wrong.append(f"{len(names)} public names are defined by two folders, {MOST_NAMES} at most; rename one")
  print("\n".join(wrong))
  raise SystemExit(bool(wrong))


if __name__ == "__main__":
  main()
