"""Parses commands with the programs' own parsers, and runs nothing: a list of [module, *arguments] on stdin, as JSON.

Prints, for each, null or what the parser said. Every command is parsed in a child of its own, since flags are global.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import os
import runpy
import sys

from absl import app

from train import check


class Parsed(Exception):
  """The parser came to its end."""


def parse(module: str, arguments: list[str]) -> str | None:
  """Returns None where the program's parser takes the arguments, else what it says."""
  real, real_known, depth = argparse.ArgumentParser.parse_args, argparse.ArgumentParser.parse_known_args, 0

  def parse_args(self, *args, **kwargs):
    nonlocal depth
    depth += 1
    real(self, *args, **kwargs)
    raise Parsed

  def parse_known_args(self, *args, **kwargs):
    """Ends the outermost call, of programs that hand words for a recipe on."""
    nonlocal depth
    depth += 1
    known, rest = real_known(self, *args, **kwargs)
    depth -= 1
    if depth:
      return known, rest
    if wrong := [word for word in rest if not word.startswith("--config.")]:
      raise SystemExit(f"unknown arguments {wrong}")
    raise Parsed

  def run(main, argv=None, flags_parser=None):
    rest = flags_parser(sys.argv) if flags_parser else app.parse_flags_with_usage(sys.argv)
    if rest[1:]:
      raise SystemExit(f"unknown arguments {rest[1:]}")
    from absl import flags

    if "config" in flags.FLAGS and module != "train.encoder":
      config = flags.FLAGS.config.copy_and_resolve_references()
      if not config.data.source:
        config.data.root = config.data.root or "given by the run"
      check.config(config, 1)
    raise Parsed

  argparse.ArgumentParser.parse_args = parse_args
  argparse.ArgumentParser.parse_known_args = parse_known_args
  app.run = run
  sys.argv = [module, *arguments]
  said = io.StringIO()
  try:
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
      if module == "qat_jax.cli":
        cli = importlib.import_module(module)
        if arguments and arguments[0] in cli.programs.PROGRAMS:
          return parse(cli.programs.PROGRAMS[arguments[0]], arguments[1:])
        cli.main()
      else:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
  except Parsed:
    return None
  except (Exception, SystemExit) as error:
    return f"{error} {said.getvalue()}"
  return "it came to its end without parsing anything"


def in_a_child(module: str, arguments: list[str]) -> str | None:
  """Returns what `parse` does, of a forked process."""
  back, forth = os.pipe()
  if not os.fork():
    with os.fdopen(forth, "w") as file:
      json.dump(parse(module, arguments), file)
      file.flush()
    os._exit(0)
  os.close(forth)
  with os.fdopen(back) as file:
    answer = json.load(file)
  os.wait()
  return answer


if __name__ == "__main__":
  commands = json.load(sys.stdin)
  for name in sorted({module for module, *_ in commands}):
    if importlib.util.find_spec(name) is None:
      raise SystemExit(f"there is no program {name}")
  for heavy in ("eval.speed.search", "eval.pipeline"):  # once, not in every child
    importlib.import_module(heavy)
  print(json.dumps([in_a_child(module, arguments) for module, *arguments in commands]))
