import errno
import fcntl
import json
import logging
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from qat_jax import stages
from qat_jax.stages import checksum, fingerprint, lock, write_json, write_whole


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
  assert [path.name for path in tmp_path.iterdir()] == ["f"]
  assert (tmp_path / "f").read_bytes() == b"old"


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_clears_up(tmp_path):
  write_whole(tmp_path / "f", b"old")
  code = "import os, sys; from qat_jax import stages; os.fsync = lambda _: os.kill(os.getpid(), 9); "
  killed = subprocess.run([sys.executable, "-c", f"{code}stages.write_whole(sys.argv[1], b'new')", tmp_path / "f"])
  assert killed.returncode == -signal.SIGKILL
  assert len(list(tmp_path.iterdir())) == 2
  assert (tmp_path / "f").read_bytes() == b"old"
  write_whole(tmp_path / "f", b"newer")
  assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_writers_of_the_same_file_do_not_meet(tmp_path, monkeypatch):
  written = []
  real = os.replace

  def second_writer_comes_between(temporary, path):
    monkeypatch.setattr("os.replace", real)
    write_whole(tmp_path / "f", b"second")
    assert temporary.read_bytes() == b"first"
    written.append(temporary)
    real(temporary, path)

  monkeypatch.setattr("os.replace", second_writer_comes_between)
  write_whole(tmp_path / "f", b"first")
  assert written
  assert (tmp_path / "f").read_bytes() == b"first"


def test_differences_are_named_with_both_values():
  made_with = fingerprint(steps=2, noise={"kind": "unit", "scale": 0.5}, forms=("a", "b"), gone=None)
  wanted = fingerprint(
    steps=2, noise={"kind": "unit", "scale": np.float64(0.3)}, forms=["a", "b"], root=pathlib.Path("x")
  )
  assert stages.differences(made_with, wanted) == [
    "gone was None, is not there",
    "noise.scale was 0.5, is 0.3",
    "root was not there, is 'x'",
  ]
  assert stages.differences(made_with, made_with) == []
  with pytest.raises(TypeError, match="cannot hold a ndarray"):
    fingerprint(array=np.ones(2))


def test_a_result_counts_only_where_nothing_it_read_has_changed(caplog):
  wanted = fingerprint(k=1)
  assert stages.made("the thing", wanted, {"k": 1})
  with caplog.at_level(logging.WARNING):
    assert not stages.made("the thing", None, wanted)
    assert not caplog.messages
    assert not stages.made("the thing", {"k": 2}, wanted)
  assert caplog.messages == ["the thing is made anew: k was 2, is 1"]
  stages.check_same("the thing", wanted, wanted, "Delete it")
  with pytest.raises(ValueError, match=r"the thing was made with other inputs or settings: k was 2, is 1\. Delete it"):
    stages.check_same("the thing", {"k": 2}, wanted, "Delete it")


def test_the_digest_of_files_is_that_of_their_bytes(tmp_path, monkeypatch):
  for name in "abc":
    write_whole(tmp_path / name, name.encode())
  paths = [tmp_path / name for name in "abc"]
  before = stages.digest_of_files(paths)
  assert stages.digest_of_files(reversed(paths)) != before
  about = paths[1].stat()
  paths[1].write_bytes(b"B")
  os.utime(paths[1], ns=(about.st_atime_ns, about.st_mtime_ns))
  assert stages.digest_of_files(paths) != before
  paths[1].write_bytes(b"b")
  assert stages.digest_of_files(paths) == before


def test_a_settled_file_is_read_once_and_a_changed_one_again(tmp_path, monkeypatch):
  reads = []
  monkeypatch.setattr(stages, "SETTLED_NS", 0)
  monkeypatch.setattr(stages, "checksum", lambda path: reads.append(path.name) or checksum(path))
  write_whole(tmp_path / "f", b"one")
  digests = [stages.digest_of_files([tmp_path / "f"]) for _ in range(2)]
  assert digests[0] == digests[1] and reads == ["f"]
  write_whole(tmp_path / "f", b"two")
  digests.append(stages.digest_of_files([tmp_path / "f"]))
  (tmp_path / "f").write_bytes(b"longer")  # in place
  digests.append(stages.digest_of_files([tmp_path / "f"]))
  assert len(set(digests)) == 3 and reads == ["f"] * 3


HOLDER = """
import sys, time
from qat_jax.stages import lock
with lock(sys.argv[1]):
  print("inside", flush=True)
  time.sleep(60)
"""


def test_a_lock_names_who_holds_it_and_ends_with_its_process(tmp_path):
  holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "run"], stdout=subprocess.PIPE, text=True)
  try:
    assert holder.stdout.readline() == "inside\n"
    by = rf"run is in use by process {holder.pid} on {socket.gethostname()};"
    with pytest.raises(BlockingIOError, match=by), lock(tmp_path / "run"):
      pass
  finally:
    holder.kill()
    holder.communicate()
  with lock(tmp_path / "run"), pytest.raises(BlockingIOError, match=f"process {os.getpid()}"), lock(tmp_path / "run"):
    pass
  with lock(tmp_path / "run"):
    pass
  assert not (tmp_path / "run").exists()  # nothing else was in it


def test_a_lock_waits_for_the_name_of_one_who_has_just_come_in(tmp_path):
  with open(tmp_path / ".lock", "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    writing = threading.Timer(0.05, lambda: print("process 7 on somewhere", end="", file=file, flush=True))
    writing.start()
    with pytest.raises(BlockingIOError, match="in use by process 7 on somewhere; wait"), lock(tmp_path):
      pass
    writing.join()
