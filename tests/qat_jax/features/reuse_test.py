import numpy as np
import pytest

from qat_jax.features import reuse
from qat_jax.features.extraction import extract


class Source:
  """Pictures by name: the bytes say the colour."""

  def __init__(self, colours):
    self.names, self.colours = list(colours), list(colours.values())

  def __len__(self):
    return len(self.names)

  def __getitem__(self, position):
    colour = self.colours[position]
    image = f"P3 1 1 255 {colour} 7 {colour // 2}".encode()
    return {"id": self.names[position], "image": image, "caption": f"no. {colour}", "instance": None}


class Encoder:
  name, revision, width, max_tokens, truncated = "fake", "1", 3, 8, 0

  def __init__(self):
    self.seen, self.batches = [], []

  def images(self, images):
    colours = [np.asarray(image)[0, 0] for image in images]
    self.seen += [int(colour[0]) for colour in colours]
    self.batches.append(len(images))
    row_ND = np.array(colours, np.float32) + 1
    return row_ND / np.linalg.norm(row_ND, axis=1, keepdims=True)

  def texts(self, texts):
    return np.eye(3, dtype=np.float32)[[len(text) % 3 for text in texts]]


def encoded(source, folder, encoder=None, **settings):
  encoder = encoder or Encoder()
  stores = extract(source, encoder, folder, batch_size=4, rows_per_shard=10, progress=False, **settings)
  return encoder, stores


OLD = {f"p{i}": i for i in range(23)}
# new ones before and between, one that has changed, one renamed, one gone
NEW = {"a": 100, **{f"p{i}": i for i in range(3, 12)}, "p12": 112, "z": 13, **{f"p{i}": i for i in range(14, 23)}}


def test_only_new_pictures_are_encoded_and_the_features_are_those_of_encoding_everything(tmp_path, capsys):
  encoded(Source(OLD), tmp_path / "runs/old/gallery")
  encoder, stores = encoded(Source(NEW), tmp_path / "new", reuse=tmp_path / "runs")
  _, whole = encoded(Source(NEW), tmp_path / "whole")
  assert encoder.seen == [100, 112] and encoder.batches == [1, 1]  # a shard each
  for kind in ("img", "text"):
    np.testing.assert_array_equal(stores[kind][:], whole[kind][:])
  assert list(stores["img"].ids) == list(NEW) and stores["img"].meta["reused"] == len(NEW) - 2
  assert f"{len(NEW) - 2} pictures were encoded before" in capsys.readouterr().out
  # what was reused can be reused
  encoder, _ = encoded(Source(NEW), tmp_path / "again", reuse=tmp_path / "new", kinds=("img",))
  assert not encoder.seen


def test_batches_are_full_whichever_pictures_are_new(tmp_path):
  encoded(Source({name: colour for name, colour in OLD.items() if colour % 2}), tmp_path / "odd")
  encoder, _ = encoded(Source(OLD), tmp_path / "all", reuse=tmp_path / "odd")
  assert encoder.batches == [4, 1, 4, 1, 2]


def test_equal_pictures_and_pictures_that_come_decoded(tmp_path):
  _, stores = encoded(Source({"a": 1, "b": 1, "c": 2}), tmp_path / "old")
  encoder, again = encoded(Source({"c": 2, "d": 1, "e": 1}), tmp_path / "new", reuse=tmp_path / "old")
  assert not encoder.seen
  np.testing.assert_array_equal(again["img"][:], stores["img"][:][[2, 0, 0]])
  assert reuse.digest(object()) == reuse.UNKNOWN
  assert (
    reuse.Encoded(tmp_path / "old", {"encoder": "fake", "revision": "1", "dtype": "float16"}).row(reuse.UNKNOWN) is None
  )


def test_what_cannot_be_reused_is_said_before_any_work(tmp_path):
  encoded(Source(OLD), tmp_path / "old")
  other = type("Other", (Encoder,), {"revision": "2"})()
  with pytest.raises(ValueError, match=r"old cannot be reused: .*'revision': '1'.*'revision': '2'"):
    encoded(Source(NEW), tmp_path / "new", other, reuse=tmp_path / "old")
  half = Encoder()
  half.dtype = "bfloat16"
  with pytest.raises(ValueError, match=r"old cannot be reused: .*'precision': None.*'precision': 'bfloat16'"):
    encoded(Source(NEW), tmp_path / "new", half, reuse=tmp_path / "old")
  with pytest.raises(ValueError, match=r"old was made with other inputs or settings: .*precision was .* is 'bfloat16'"):
    encoded(Source(OLD), tmp_path / "old", half)
  with pytest.raises(ValueError, match=r"empty has nothing to reuse: give a folder that"):
    encoded(Source(NEW), tmp_path / "new", reuse=tmp_path / "empty")
  path = tmp_path / "old" / reuse.CONTENT
  whole = path.read_bytes()
  for broken in (whole[:-1], whole[:5] + bytes([whole[5] ^ 1]) + whole[6:], b""):
    path.write_bytes(broken)
    with pytest.raises(ValueError, match=rf"{path} is damaged"):
      encoded(Source(NEW), tmp_path / "new", reuse=tmp_path / "old")
  reuse.write_content(tmp_path / "old", ["00" * 16])
  with pytest.raises(ValueError, match=r"is of 1 rows, the features are 23"):
    encoded(Source(NEW), tmp_path / "new", reuse=tmp_path / "old")
  reuse.write_content(tmp_path / "old", [whole[: 23 * 16].hex()])
  shard = next((tmp_path / "old" / "img_emb").iterdir())
  data = bytearray(shard.read_bytes())
  data[-1] ^= 1
  shard.write_bytes(data)
  with pytest.raises(ValueError, match=shard.name):
    encoded(Source(NEW), tmp_path / "new", reuse=tmp_path / "old")
