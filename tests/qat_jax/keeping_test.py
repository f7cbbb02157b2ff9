"""Marks on the disk: kills, damage, two writers, a full disk."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from qat_jax.keeping import KeptMarks, read_marks

WRITER = """
import sys
from qat_jax.keeping import KeptMarks
marks = KeptMarks(sys.argv[1])
for i in range(100_000):
  marks.append([{"item": f"{sys.argv[2]}-{i}", "right": True, "more": "x" * 5000}])
  print(i, flush=True)
"""


def mark(item, right=True):
  return {"item": item, "right": right}


def items(folder):
  return [record["item"] for record in read_marks(folder)]


def test_marks_come_back_as_they_were_and_a_replayed_one_once(tmp_path):
  marks, other = KeptMarks(tmp_path), KeptMarks(tmp_path)
  assert marks.append([mark("é/1"), mark("b", False)]) == 2
  assert marks.append([mark("é/1"), mark("c")]) == 1
  assert other.append([mark("é/1")]) == 1  # it does not know what the first one wrote: reading does
  records = list(read_marks(tmp_path))
  assert sorted((one["item"], one["right"]) for one in records) == [("b", False), ("c", True), ("é/1", True)]
  assert len(list(tmp_path.iterdir())) == 2


def test_damaged_and_half_lines_are_left_out_and_said(tmp_path, caplog):
  marks = KeptMarks(tmp_path)
  for name in "abc":
    marks.append([mark(name)])
  (path,) = tmp_path.iterdir()
  lines = path.read_bytes().splitlines(keepends=True)
  path.write_bytes(lines[0] + lines[1].replace(b'"b"', b'"x"') + lines[2][:-9])
  with caplog.at_level(logging.WARNING):
    assert items(tmp_path) == ["a"]
  assert [f"line {number} is cut short or damaged" in caplog.text for number in (1, 2, 3)] == [False, True, True]


def test_a_full_disk_keeps_none_of_them_and_later_marks_are_whole(tmp_path, monkeypatch):
  marks, write = KeptMarks(tmp_path), os.write
  marks.append([mark("a")])

  def half(descriptor, data):
    if len(data) > 20:
      return write(descriptor, bytes(data)[:20])
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(os, "write", half)
  with pytest.raises(OSError, match="No space left"):
    marks.append([mark("b" * 5), mark("c" * 5)])
  monkeypatch.setattr(os, "write", write)
  assert items(tmp_path) == ["a"]
  assert marks.append([mark("b" * 5)]) == 1 and sorted(items(tmp_path)) == ["a", "bbbbb"]


def test_a_folder_takes_no_more_than_its_limit(tmp_path):
  marks = KeptMarks(tmp_path, limit=200)
  assert marks.append([mark("a")]) == 1
  with pytest.raises(OSError, match="200 are the most; empty it"):
    KeptMarks(tmp_path, limit=200).append([mark("b"), mark("c")])
  assert items(tmp_path) == ["a"]


@pytest.mark.long
def test_after_20_kills_every_accepted_mark_is_there_and_no_half_one(tmp_path):
  accepted = []
  for round_ in range(20):
    process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, str(round_)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    time.sleep(0.002 * round_)
    process.send_signal(signal.SIGKILL)
    numbers, _ = process.communicate(timeout=20)
    accepted += [f"{round_}-{i}" for i in range(1 + numbers.count("\n"))]
  assert set(accepted) <= set(items(tmp_path)) and len(accepted) > 30
