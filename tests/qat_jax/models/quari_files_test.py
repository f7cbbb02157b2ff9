import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile

import chex
import jax
import numpy as np
import pytest

import qat_jax
from qat_jax.adapter import Head
from qat_jax.models import quari as released
from qat_jax.models import quari_files as released_files
from qat_jax.sharing.share import export

ANCHORED = pathlib.Path(__file__).parents[2] / "data" / "reference_vectors" / "anchored"


@pytest.fixture
def folder(tmp_path):
  shutil.copytree(ANCHORED, tmp_path / "quari")
  return tmp_path / "quari"


def replace_pickle(path, content, compression=zipfile.ZIP_STORED):
  """Writes the archive anew with another data.pkl."""
  with zipfile.ZipFile(path) as archive:
    parts = {name: archive.read(name) for name in archive.namelist()}
  with zipfile.ZipFile(path, "w", compression) as archive:
    for name, part in (parts | {"weights/data.pkl": content}).items():
      archive.writestr(name, part)


class Plants:
  """Creates a file when it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_named_and_not_run(folder, tmp_path):
  content = pickle.dumps({"pos_emb": Plants(tmp_path / "planted")})
  pickle.loads(content)
  assert (tmp_path / "planted").exists()  # it does what it is feared to do
  (tmp_path / "planted").rmdir()
  replace_pickle(folder / "weights.pt", content)
  with pytest.raises(ValueError, match=r"wants to call (posix|nt)\.mkdir; it was not read"):
    qat_jax.load(folder)
  assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize("name", ["builtins eval", "torch load", "torch.storage _load_from_bytes", "numpy fromfile"])
def test_any_other_callable_is_refused_by_name(folder, name):
  replace_pickle(folder / "weights.pt", f"c{name.replace(' ', chr(10))}\n.".encode())
  with pytest.raises(ValueError, match=name.replace(" ", r"\.")):
    qat_jax.load(folder)


@pytest.mark.parametrize("kept", [0, 100, 0.5, -1])
def test_a_truncated_file_is_refused(folder, kept):
  whole = (folder / "weights.pt").read_bytes()
  (folder / "weights.pt").write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
  with pytest.raises(ValueError, match="weights.pt is not a whole archive"):
    qat_jax.load(folder)


def test_a_flipped_bit_is_noticed(folder):
  content = bytearray((folder / "weights.pt").read_bytes())
  content[len(content) // 2] ^= 1
  (folder / "weights.pt").write_bytes(content)
  with pytest.raises(ValueError, match="CRC"):
    qat_jax.load(folder)


def test_a_compressed_archive_is_refused(folder):
  replace_pickle(folder / "weights.pt", bytes(10_000), zipfile.ZIP_DEFLATED)
  with pytest.raises(ValueError, match="compressed"):
    qat_jax.load(folder)


@pytest.mark.parametrize(
  "content", [b"\x80\x02]q\x00.", b"\x80\x02K\x01.", b"\x80\x02}q\x00X\x01\x00\x00\x00aK\x01s.", b""]
)
def test_a_pickle_of_something_else_is_refused(folder, content):
  replace_pickle(folder / "weights.pt", content)
  with pytest.raises(ValueError, match="archive of tensors"):
    qat_jax.load(folder)


def test_a_tensor_that_reaches_beyond_its_storage_is_refused():
  storage = np.arange(6, dtype=np.float32)
  np.testing.assert_array_equal(released_files._tensor(storage, 1, (2, 2), (1, 2)), [[1, 3], [2, 4]])
  for offset, shape, stride in ((1, (2, 3), (3, 1)), (0, (100, 100), (0, 0)), (-1, (2,), (1,)), (0, (2,), (-1,))):
    with pytest.raises(ValueError, match="a tensor"):
      released_files._tensor(storage, offset, shape, stride)


@pytest.mark.parametrize("dtype", ["<f2", "bfloat16", "<f8"])
def test_numbers_of_other_lengths_become_float32(dtype, tmp_path):
  storage = {"<f2": "HalfStorage", "bfloat16": "BFloat16Storage", "<f8": "DoubleStorage"}[dtype]
  values = np.asarray([1.5, -2, 0.25], released_files._STORAGES[storage])
  reference = f"(X\x07\0\0\0storagectorch\n{storage}\nX\x01\0\0\0".encode() + b"0X\x03\0\0\0cpuK\x03tQ"
  tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + b"K\x00K\x03\x85K\x01\x85\x89NtR"
  with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
    archive.writestr("any/data.pkl", b"\x80\x02}X\x01\0\0\0a" + tensor + b"s.")
    archive.writestr("any/data/0", values.tobytes())
  got = released_files.read_weights(tmp_path / "weights.pt")["a"]
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, [1.5, -2, 0.25])


def test_missing_extra_and_ill_shaped_tensors_are_named():
  config = released_files.read_config(ANCHORED / "config.yml")
  tensors = released_files.read_weights(ANCHORED / "weights.pt")
  without = {name: tensor for name, tensor in tensors.items() if name != "dec_u_img.3.bias"}
  with pytest.raises(ValueError, match=r"lacks \['dec_u_img.3.bias'\]"):
    released.variables(without, config)
  with pytest.raises(ValueError, match=r"unknown \['surprise'\]"):
    released.variables(tensors | {"surprise": np.zeros(1)}, config)
  with pytest.raises(ValueError, match=r"\(3, 3\) for pos_emb, config.yml wants \(9, 64\)"):
    released.variables(tensors | {"pos_emb": np.zeros((3, 3))}, config)


@pytest.mark.parametrize(
  ("old", "new", "message"),
  [
    ("  nhead: 4", "  nhead: 4\n  colour: red", r"unknown keys \['colour'\].*known are.*'nhead'"),
    ("  nhead: 4\n", "", r"missing keys \['nhead'\]"),
    ("nhead: 4", "nhead: four", "nhead is 'four'; wanted int"),
    ("nhead: 4", "nhead: 3", "even multiple of nhead, 3"),
    ("num_steps: 3", "num_steps: 0", "num_steps is 0"),
    ("hparams:", "hparams: [", "not YAML"),
    ("hparams:", "other:", r"unknown keys \['other'\], missing keys \['hparams'\]"),
    ("feature_extractor: openai", "feature_extractor: !!python/object/apply:os.getcwd []\n#", "not YAML"),
  ],
)
def test_a_config_that_is_not_understood_is_refused(folder, old, new, message):
  text = (folder / "config.yml").read_text()
  assert old in text
  (folder / "config.yml").write_text(text.replace(old, new))
  with pytest.raises(ValueError, match=message):
    qat_jax.load(folder)


@pytest.mark.parametrize("name", released_files.FILES)
def test_a_missing_file_is_named(folder, name):
  (folder / name).unlink()
  with pytest.raises(FileNotFoundError, match=f"lacks {name}"):
    qat_jax.load(folder)


def test_a_converted_checkpoint_loads_identically_and_says_where_it_is_from(folder, tmp_path):
  export(folder, tmp_path / "ours")
  got, want = qat_jax.load(tmp_path / "ours"), qat_jax.load(folder)
  chex.assert_trees_all_equal(jax.device_get(got.params), want.params)
  with np.load(folder / "vectors.npz") as file:
    query_QD = file["query"]
  chex.assert_trees_all_equal(got(query_QD), want(query_QD))
  assert got.info == want.info
  assert got.info["source"] == "quari" and got.info["encoder"] == "openai/clip-vit-base-patch16"


def test_only_the_released_form_is_converted(tmp_path):
  qat_jax.Adapter(4, {"text": Head("plain", {}, {})}).save(tmp_path / "plain")
  with pytest.raises(ValueError, match="has the form 'plain'"):
    export(tmp_path / "plain", tmp_path / "ours", dtype="float32")


def test_an_address_on_the_hub_is_fetched_in_the_revision_wanted(folder, monkeypatch):
  asked = []

  def fetch(name, revision, allow_patterns):
    asked.append((name, revision, sorted(allow_patterns)))
    return str(folder)

  monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
  adapter = qat_jax.load("hf://owner/name", revision="abc")
  assert asked == [("owner/name", "abc", ["adapter.json", "config.yml", "params-*.safetensors", "weights.pt"])]
  assert adapter.info["source"] == "hf://owner/name@quari"
  with pytest.raises(ValueError, match="wanted hf://owner/name"):
    qat_jax.load("hf://owner")
  with pytest.raises(ValueError, match="no address on the hub"):
    qat_jax.load(folder, revision="abc")


def test_torch_is_not_imported():
  code = f"import sys, qat_jax; qat_jax.load({str(ANCHORED)!r}); sys.exit('torch' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
