"""Plants faults and shows that the campaigns catch them: python -m tests.faults.mutations [NAME …].

Each tests/faults/mutations/NAME.patch is applied to a copy of the checkout, in which the campaign that its first line
names is run; it has to find something wrong. Ends with status 1 where it does not.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from tests.faults.jobs import ROOT

PATCHES = ROOT / "tests/faults/mutations"
FIRST = "campaign: "
SHORT = {"CAMPAIGN_MINUTES": "1"}  # a fault shows in a minute of searches


def main() -> None:
  """Plants what the command line names, all without it."""
  names = sys.argv[1:] or sorted(path.stem for path in PATCHES.glob("*.patch"))
  missed = [name for name in names if not caught(PATCHES / f"{name}.patch")]
  sys.exit(f"not caught: {', '.join(missed)}" if missed else 0)


def caught(patch: pathlib.Path) -> bool:
  """Says whether the campaign that a patch names finds it."""
  first, what = patch.read_text().splitlines()[:2]
  with tempfile.TemporaryDirectory() as folder:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout
    for name in filter(None, listed.decode().split("\0")):
      copy = pathlib.Path(folder, name)
      copy.parent.mkdir(parents=True, exist_ok=True)
      if (ROOT / name).is_file():
        copy.write_bytes((ROOT / name).read_bytes())
    subprocess.run(["git", "apply", str(patch)], cwd=folder, check=True)
    words = [sys.executable, "-m", "tests.faults.campaign", "--only", *first.removeprefix(FIRST).split()]
    done = subprocess.run(
      words, cwd=folder, capture_output=True, text=True, env=os.environ | SHORT | {"PYTHONPATH": folder}
    )
  found = [line for line in done.stdout.splitlines() if line.strip()]
  end, shown = "caught" if done.returncode == 1 else "NOT CAUGHT", found[0] if found else done.stderr[-300:]
  print(f"{patch.stem} ({what}): {end}; {shown[:200]}", flush=True)
  return done.returncode == 1 and bool(found)


if __name__ == "__main__":
  main()
