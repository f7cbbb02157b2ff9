"""Runs the campaigns of faults and writes what happened: python -m tests.faults.campaign [--only kill,disk] [--short].

Seeded, bounded in time, and gone on with where it was stopped: what was tried lies in --folder, a line a case. The
table in docs/notes/reliability.md is made of those lines with --write. Ends with status 1 where anything was wrong.
"""

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "XLA_FLAGS": ""}

import argparse
import collections
import functools
import importlib
import json
import pathlib
import random
import sys
import time
from typing import Any

from qat_jax.runs import commit
from qat_jax.stages import write_whole

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs/notes/reliability.md"
MARKS = ("<!-- made by make campaign -->", "<!-- until here -->")
COUNTS = {
  "kill": (180, 4),
  "disk": (700, 4),
  "input": (10_000, 200),
  "two": (55, 1),
  "living": (100, 2),
  "writes": (10_000, 0),
  "long": (1, 0),
}  # in all, in short


def main() -> None:
  """Runs what was asked for."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--only", default=",".join(COUNTS), help=f"some of {','.join(COUNTS)}")
  parser.add_argument("--short", action="store_true", help="a few cases of each, as in make test")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--minutes", type=float, default=600.0, help="no case is begun later")
  parser.add_argument("--folder", type=pathlib.Path, default=ROOT / "runs/campaign")
  parser.add_argument("--cases", type=int, help="how many of each, in the place of the usual number")
  parser.add_argument("--write", action="store_true", help="write the table into docs/notes/reliability.md")
  flags = parser.parse_args()
  names = flags.only.split(",")
  if unknown := set(names) - set(COUNTS):
    parser.error(f"--only has {sorted(unknown)}; there are {sorted(COUNTS)}")
  flags.folder = flags.folder.resolve()
  flags.folder.mkdir(parents=True, exist_ok=True)
  log, until = flags.folder / "cases.jsonl", time.monotonic() + 60 * flags.minutes
  wrong = sum(run(name, flags, log, until) for name in names)
  if flags.write:
    write_table(read(log))
  sys.exit(bool(wrong))


def run(name: str, flags: argparse.Namespace, log: pathlib.Path, until: float) -> int:
  """Runs the cases of one campaign that were not run yet on this commit; returns how many were wrong."""
  now = commit()
  done = {(c["campaign"], c["seed"], c["case"]) for c in read(log) if c["commit"] == now and not c["wrong"]}
  count = COUNTS[name][flags.short] if flags.cases is None else flags.cases
  missing = [number for number in range(count) if (name, flags.seed, number) not in done]
  if not missing:
    return 0
  campaign: Any = importlib.import_module(f"tests.faults.{name}")
  bench, wrong, began, size = the_bench(flags.folder), 0, time.monotonic(), getattr(campaign, "BATCH", 1)
  run = 0
  with log.open("a") as file:
    for start in range(0, len(missing), size):
      if time.monotonic() > until:
        print(f"{name}: the time is over, {start} of {len(missing)} cases were run", flush=True)
        break
      numbers = missing[start : start + size]
      for number, outcome in zip(numbers, outcomes(campaign, bench, numbers, flags.seed), strict=True):
        run, wrong = run + 1, wrong + bool(outcome.wrong)
        line = {"campaign": name, "seed": flags.seed, "case": number, **outcome._asdict(), "commit": now}
        file.write(json.dumps(line) + "\n")
        file.flush()
        if outcome.wrong:
          print(f"{name} {number}: {outcome.wrong}", flush=True)
  print(f"{name}: {run} cases in {time.monotonic() - began:.0f} s, {wrong} wrong", flush=True)
  return wrong


@functools.cache
def the_bench(folder: pathlib.Path) -> Any:
  """Returns the bench, which all campaigns of a run share."""
  from tests.faults.bench import Bench

  return Bench(folder)


def outcomes(campaign: Any, bench: Any, numbers: list[int], seed: int) -> list[Any]:
  """Returns what some cases came to: those of a campaign that has many are run together."""
  if hasattr(campaign, "cases"):
    return campaign.cases(bench, numbers, seed)
  name = campaign.__name__.rsplit(".", 1)[1]
  return [campaign.case(bench, number, random.Random(f"{seed}/{name}/{number}")) for number in numbers]


def read(log: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the cases that were run; a line that a kill cut short is left out."""
  lines = log.read_text().splitlines() if log.exists() else []
  return [json.loads(line) for line in lines if line.endswith("}")]


def write_table(cases: list[dict[str, Any]]) -> None:
  """Writes what was tried, how often, with which end and on which commits into the page, between its marks."""
  rows: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
  for one in cases:
    rows[one["campaign"], one["row"]].append(one)
  lines = ["| campaign | what | cases | what happened | commit |", "|---|---|---:|---|---|"]
  for (campaign, row), tried in sorted(rows.items(), key=lambda entry: (list(COUNTS).index(entry[0][0]), entry[0][1])):
    ends = collections.Counter(one["happened"] for one in tried).most_common()
    commits = ", ".join(dict.fromkeys(one["commit"][:7] for one in tried))
    happened = ", ".join(f"{count:,} {what}" for what, count in ends)
    lines.append(f"| {campaign} | {row} | {len(tried):,} | {happened} | {commits} |")
  before, rest = PAGE.read_text().split(MARKS[0])
  after = rest.split(MARKS[1])[1]
  write_whole(PAGE, "\n".join([before + MARKS[0], "", *lines, "", MARKS[1] + after]).encode())


if __name__ == "__main__":
  main()
