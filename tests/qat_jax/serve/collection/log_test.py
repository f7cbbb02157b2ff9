"""A log gives back what was appended, leaves out an end that was cut off, and refuses what is damaged."""

import errno
import os

import pytest

from qat_jax.serve.collection import log


def written(path, contents):
  opened = log.Log(path, 0)
  for content in contents:
    opened.append(content)
  opened.close()
  return opened.size


CONTENTS = [b"one", b"", b"three" * 20]


def test_an_end_cut_off_anywhere_leaves_the_whole_frames_and_is_written_over(tmp_path):
  path = tmp_path / "log"
  size = written(path, CONTENTS)
  data = path.read_bytes()
  assert log.read(path) == (CONTENTS, size)
  for end in range(len(data)):
    path.write_bytes(data[:end])
    frames, good = log.read(path)
    assert frames == CONTENTS[: len(frames)] and good <= end
    again = log.Log(path, good)
    again.append(b"new")
    again.close()
    assert log.read(path) == ([*frames, b"new"], path.stat().st_size)


def test_any_changed_byte_before_the_last_frame_is_an_error_that_names_the_file(tmp_path):
  path = tmp_path / "log"
  written(path, CONTENTS[:2])
  end = path.stat().st_size
  written(path, CONTENTS)
  data = path.read_bytes()
  for place in range(end):
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ValueError, match=f"{path} is damaged"):
      log.read(path)


def test_zeros_at_the_end_that_a_power_cut_leaves_are_no_frame(tmp_path):
  path = tmp_path / "log"
  size = written(path, CONTENTS)
  path.write_bytes(path.read_bytes() + bytes(100))
  assert log.read(path) == (CONTENTS, size)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_full_disk_takes_nothing_and_the_log_goes_on_after_it(tmp_path, monkeypatch, call):
  path = tmp_path / "log"
  opened = log.Log(path, 0)
  opened.append(b"before")

  def full(file, data=b"", at=0):
    if call == "pwrite" and len(data) > 4:
      return real(file, data[:4], at)  # a part of it fits
    monkeypatch.setattr(os, call, real)
    raise OSError(errno.ENOSPC, "full")

  real = getattr(os, call)
  monkeypatch.setattr(os, call, full)
  with pytest.raises(OSError, match="no room"):
    opened.append(b"x" * 10)
  monkeypatch.setattr(os, call, real)
  opened.append(b"after")
  assert log.read(path)[0] == [b"before", b"after"]
