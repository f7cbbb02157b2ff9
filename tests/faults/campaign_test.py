"""The campaigns in their short form: a few cases of each."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def test_the_short_form_of_the_campaigns_finds_nothing_wrong(tmp_path):
  words = ["-m", "tests.faults.campaign", "--short", "--folder", str(tmp_path)]
  done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  cases = [json.loads(line) for line in (tmp_path / "cases.jsonl").read_text().splitlines()]
  assert {case["campaign"] for case in cases} == {"kill", "disk", "input", "two"}
  assert not [case for case in cases if case["wrong"]]
