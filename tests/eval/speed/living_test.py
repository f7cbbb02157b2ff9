import re
import subprocess
import sys


def test_a_small_collection_is_measured_while_it_grows():
  words = ["--items", "2000", "--width", "16", "--seconds", "1", "--changing", "4", "--added", "100", "--repeats", "2"]
  done = subprocess.run([sys.executable, "-m", "eval.speed.living", *words], capture_output=True, text=True, check=True)
  rows = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
  names = [row[0] for row in rows]
  assert names[2:4] == ["| nothing changes", "| 50 items a second"] and names[-3:] == ["| 1", "| 8", "| 32"]
  assert "{'200': " in rows[3][4] and all(float(row[1]) > 0 for row in rows[-3:])
  assert re.search(r"^[1-9]\d* changes, 2,(?!000)\d\d\d items there", done.stdout, re.MULTILINE)
