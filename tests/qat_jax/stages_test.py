import errno
import json
import resource
import signal

import numpy as np
import pytest

from qat_jax.stages import checksum, write_json, write_whole


def test_pieces_are_joined_and_the_checksum_is_the_files(tmp_path):
  array = np.arange(6, dtype=np.float16).reshape(2, 3)
  returned = write_whole(tmp_path / "f", b"head", array, np.empty((0, 3)), b"")
  assert (tmp_path / "f").read_bytes() == b"head" + array.tobytes()
  assert checksum(tmp_path / "f") == returned
  assert checksum(tmp_path / "f") != write_whole(tmp_path / "g", b"other")


def test_json_is_read_back(tmp_path):
  write_json(tmp_path / "f.json", {"name": "Ångström", "n": [1, 2]})
  assert json.loads((tmp_path / "f.json").read_text()) == {"name": "Ångström", "n": [1, 2]}


def test_no_room_is_said_and_the_old_file_stays(tmp_path):
  write_whole(tmp_path / "f", b"old")
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
  try:
    with pytest.raises(OSError, match=r"no room for .*f \(1\.0 MB\); free some space") as caught:
      write_whole(tmp_path / "f", bytes(1_000_000))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)
  assert caught.value.errno == errno.EFBIG
  assert [path.name for path in tmp_path.iterdir()] == ["f"]
  assert (tmp_path / "f").read_bytes() == b"old"


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path, monkeypatch):
  write_whole(tmp_path / "f", b"old")

  def look(temporary, path):
    assert temporary.read_bytes() == b"new"
    raise KeyboardInterrupt

  monkeypatch.setattr("os.replace", look)
  with pytest.raises(KeyboardInterrupt):
    write_whole(tmp_path / "f", b"new")
  assert (tmp_path / "f").read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
  write_whole(tmp_path / "f", b"old")

  def interrupt(handle):
    raise KeyboardInterrupt

  monkeypatch.setattr("os.fsync", interrupt)
  with pytest.raises(KeyboardInterrupt):
    write_whole(tmp_path / "f", b"new")
  assert [path.name for path in tmp_path.iterdir()] == ["f"]
  assert (tmp_path / "f").read_bytes() == b"old"
