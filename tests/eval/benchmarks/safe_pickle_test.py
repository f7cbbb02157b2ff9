"""Ground truths are read; whatever would run code is not, and is named."""

import pickle

import numpy as np
import pytest

from eval.benchmarks import safe_pickle


class Runs:
  """A pickle of this calls a function when it is loaded."""

  def __init__(self, function, *arguments):
    self.function, self.arguments = function, arguments

  def __reduce__(self):
    return self.function, self.arguments


def written(path, content, protocol):
  path.write_bytes(pickle.dumps(content, protocol=protocol))
  return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_come_back(tmp_path, protocol):
  content = {
    "imlist": ["a", "é"],
    "gnd": [{"easy": np.arange(3), "bbx": [1.5, 2.0], "n": np.float64(3), "t": (True, None)}],
  }
  got = safe_pickle.read_pickle(written(tmp_path / "gnd.pkl", content, protocol))
  assert got["imlist"] == content["imlist"]
  np.testing.assert_array_equal(got["gnd"][0]["easy"], [0, 1, 2])
  assert got["gnd"][0]["n"] == 3.0
  assert got["gnd"][0]["t"] == (True, None)


def test_a_pickle_of_python_2_and_old_numpy_is_read(tmp_path):
  # what Python 2.7 with NumPy 1 wrote for {"easy": numpy.array([3, 4])}: bytes as text, numpy.core.multiarray
  text = (
    b"(dp0\nS'easy'\np1\ncnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntp4\nS'b'\np5\ntp6\nRp7\n"
    b"(I1\n(I2\ntp8\ncnumpy\ndtype\np9\n(S'i8'\np10\nI0\nI1\ntp11\nRp12\n(I3\nS'<'\np13\nNNNI-1\nI-1\nI0\ntp14\nbI00\n"
    b"S'\\x03\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x04\\x00\\x00\\x00\\x00\\x00\\x00\\x00'\np15\ntp16\nbs."
  )
  path = tmp_path / "gnd.pkl"
  path.write_bytes(text)
  np.testing.assert_array_equal(safe_pickle.read_pickle(path)["easy"], [3, 4])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_wants_to_run_code_is_refused_and_named(tmp_path, protocol):
  mark = tmp_path / "ran"
  path = written(tmp_path / "gnd.pkl", {"gnd": [Runs(open, str(mark), "w")]}, protocol)
  with pytest.raises(ValueError, match=r"wants to call .*\.open"):
    safe_pickle.read_pickle(path)
  assert not mark.exists()


@pytest.mark.parametrize("function", [eval, getattr, np.load, pickle.loads])
def test_helpers_that_reach_code_by_another_way_are_refused(tmp_path, function):
  path = written(tmp_path / "gnd.pkl", Runs(function, "1"), 4)
  with pytest.raises(ValueError, match="wants to call"):
    safe_pickle.read_pickle(path)


def test_only_the_codec_of_old_pickles_is_called(tmp_path):
  import codecs

  path = written(tmp_path / "gnd.pkl", Runs(codecs.encode, "text", "rot13"), 4)
  with pytest.raises(ValueError, match="codec rot13"):
    safe_pickle.read_pickle(path)


def test_an_object_array_cannot_smuggle_a_call(tmp_path):
  path = written(tmp_path / "gnd.pkl", np.array([Runs(eval, "1")], dtype=object), 4)
  with pytest.raises(ValueError, match="eval"):
    safe_pickle.read_pickle(path)


def test_a_truncated_pickle_is_an_error_that_names_the_file(tmp_path):
  path = tmp_path / "gnd.pkl"
  path.write_bytes(pickle.dumps({"gnd": list(range(100))})[:40])
  with pytest.raises(ValueError, match=r"gnd\.pkl is not a whole pickle"):
    safe_pickle.read_pickle(path)
