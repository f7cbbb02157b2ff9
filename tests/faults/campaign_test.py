"""The campaigns in their short form: a few cases of each."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def test_the_short_form_of_the_campaigns_finds_nothing_wrong(tmp_path):
  words = ["-m", "tests.faults.campaign", "--short", "--folder", str(tmp_path)]
  done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
  assert {case["campaign"] for case in cases} == {"kill", "disk", "input", "two", "living"}
  assert not [case for case in cases if case["wrong"]]


@pytest.mark.parametrize("patch", sorted((ROOT / "tests/faults/mutations").glob("*.patch")), ids=lambda path: path.stem)
def test_a_fault_can_still_be_planted(patch):
  if not (ROOT / ".git").exists():
    pytest.skip("patches are tried in a checkout")
  done = subprocess.run(["git", "apply", "--check", str(patch)], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, f"{done.stderr}; make the patch anew"
