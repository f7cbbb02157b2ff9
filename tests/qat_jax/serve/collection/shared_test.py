"""A follower holds what the writer has acknowledged, whatever happens between two looks, and takes its place."""

import random
import signal
import subprocess
import sys

import numpy as np
import pytest

from qat_jax.serve.collection import log, shared
from qat_jax.serve.collection.shared import Shared
from tests.qat_jax.serve.collection.collection_test import changed
from tests.qat_jax.serve.collection.conftest import WIDTH, content, item


@pytest.fixture
def both(tmp_path, monkeypatch):
  """A writer and a follower of one folder, closed in the end."""
  monkeypatch.setattr(shared, "PAUSE", 0.0)
  monkeypatch.setattr(shared, "TURN", 0.0)
  two = [Shared(tmp_path / "data", ("maker", "1"), WIDTH) for _ in range(2)]
  assert [one.writes for one in two] == [True, False]
  yield two
  for one in two:
    one.close()


@pytest.mark.parametrize("seed", range(4))
def test_a_follower_holds_what_the_writer_holds_and_takes_its_place(both, small_blocks, seed):
  (writer, follower), model = both, {}
  numbers, rng = random.Random(seed), np.random.default_rng(seed)
  for _ in range(150):
    changed(writer, model, rng, numbers)
    if numbers.random() < 0.15:
      writer.compact()
    if numbers.random() < 0.3:
      follower.read_on()
      assert list(content(follower).items()) == list(content(writer).items()) == list(model.items())
      assert not follower.wants_compacting
  writer.close()
  follower.read_on()
  assert follower.writes and list(content(follower).items()) == list(model.items())
  changed(follower, model, rng, numbers)
  follower.compact()
  assert list(content(follower).items()) == list(model.items())


def test_changes_are_read_alone_and_all_is_read_anew_where_logs_were_missed(both, monkeypatch):
  (writer, follower), rng, anew = both, np.random.default_rng(0), []
  real = Shared._read_anew
  monkeypatch.setattr(Shared, "_read_anew", lambda self: (anew.append(1), real(self)))
  for compactions, times in ((0, 0), (1, 0), (2, 1), (0, 1)):
    writer.change([item(f"i{rng.integers(1000)}", rng)])
    for _ in range(compactions):
      writer.compact()
    writer.change([item(f"i{rng.integers(1000)}", rng)])
    before = follower.changes
    follower.read_on()
    assert content(follower) == content(writer) and follower.changes > before and len(anew) == times
  before = follower.changes
  follower.read_on()
  assert follower.changes == before


def test_a_frame_that_the_disk_did_not_keep_is_given_back(both, monkeypatch):
  (writer, follower), rng = both, np.random.default_rng(0)
  writer.change([item("kept", rng)])

  def failing(file):
    follower.read_on()  # it sees the frame, which is whole
    assert list(content(follower)) == ["kept", "lost"]
    monkeypatch.undo()
    raise OSError(5, "Input/output error")

  monkeypatch.setattr(log.os, "fsync", failing)
  with pytest.raises(OSError, match="Input/output"):
    writer.change([item("lost", rng)])
  writer.change([item("next", rng)])  # as long as the one that was lost
  follower.read_on()
  assert content(follower) == content(writer) and list(content(follower)) == ["kept", "next"]


def test_half_a_frame_is_waited_for(both):
  (writer, follower), rng = both, np.random.default_rng(0)
  writer.change([item("a", rng)])
  follower.read_on()
  path, before = writer.folder / "log-0", (writer.folder / "log-0").stat().st_size
  writer.change([item("b", rng)])
  whole = path.read_bytes()
  for end in (before + 1, before + log.HEAD.size + log.DIGEST, len(whole) - 1):
    path.write_bytes(whole[:end])
    follower.read_on()
    assert list(content(follower)) == ["a"]
  path.write_bytes(whole)
  follower.read_on()
  assert content(follower) == content(writer)


def test_a_follower_that_opens_while_the_writer_compacts_reads_one_state(both, monkeypatch):
  writer, rng = both[0], np.random.default_rng(0)
  writer.change([item("a", rng), item("b", rng)])
  real, times = Shared._read, []

  def raced(self):
    times.append(1)
    if len(times) < 3:
      writer.change([item(f"c{len(times)}", rng)])
      about = self.folder / "collection.json"
      record = about.read_bytes()
      writer.compact()
      now, _ = about.read_bytes(), about.write_bytes(record)  # the old record, whose log, and then base, is gone
      try:
        return real(self)
      finally:
        about.write_bytes(now)
    return real(self)

  monkeypatch.setattr(Shared, "_read", raced)
  other = Shared(writer.folder, ("maker", "1"), WIDTH)
  assert len(times) == 3 and content(other) == content(writer)
  other.close()


def test_a_follower_that_cannot_take_a_damaged_collection_keeps_what_it_has(both):
  (writer, follower), rng = both, np.random.default_rng(0)
  for name in "abc":
    writer.change([item(name, rng)])
  follower.read_on()
  before = content(follower)
  writer.close()
  path = writer.folder / "log-0"
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1  # of the second frame: the first is read
  path.write_bytes(data)
  for _ in range(3):
    with pytest.raises(ValueError, match="damaged"):
      follower.read_on()
    assert content(follower) == before and not follower.writes


def test_a_follower_changes_nothing_and_wants_something_to_follow(both, tmp_path):
  writer, follower = both
  with pytest.raises(PermissionError, match="another process writes"):
    follower.change([item("a", np.random.default_rng(0))])
  assert len(writer) == len(follower) == 0
  (writer.folder / "collection.json").unlink()
  with pytest.raises(FileNotFoundError, match=r"collection\.json"):
    Shared(writer.folder, ("maker", "1"), WIDTH)


WRITER = """
import itertools, pathlib, sys
import numpy as np
from qat_jax.serve.collection.shared import Shared
from tests.qat_jax.serve.collection.conftest import WIDTH, item
collection = Shared(pathlib.Path(sys.argv[1]), ("maker", "1"), WIDTH)
for i in itertools.count():
  collection.change([item(str(i), np.random.default_rng(i))])
  print(i, flush=True)
  if i % 50 == 49:
    collection.compact()
"""


def test_a_follower_takes_the_place_of_a_writer_that_was_killed(tmp_path):
  with subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True) as writer:
    assert writer.stdout.readline() == "0\n"
    follower = Shared(tmp_path, ("maker", "1"), WIDTH)
    assert not follower.writes
    for _ in range(3):
      told = [int(writer.stdout.readline()) for _ in range(60)]
      follower.read_on()
      assert len(follower) > told[-1]
    writer.send_signal(signal.SIGKILL)
    told += [int(line) for line in writer.stdout.read().splitlines()]
  follower._next = 0
  follower.read_on()
  assert follower.writes and len(follower) in (told[-1] + 1, told[-1] + 2)
  assert list(content(follower)) == [str(i) for i in range(len(follower))]
  follower.close()
