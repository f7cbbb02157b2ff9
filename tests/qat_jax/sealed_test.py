import json
import random

import pytest

from qat_jax import sealed


def test_a_record_comes_back_and_any_byte_that_changes_is_noticed_or_changes_nothing(tmp_path):
  content, path = {"k": [1, 2.5, None], "name": "é", "settings": {"rank": 8}}, tmp_path / "a.json"
  sealed.write_record(path, content)
  assert sealed.read_record(path) == content
  data, rng = path.read_bytes(), random.Random(0)
  for place in range(len(data)):
    changed = bytearray(data)
    changed[place] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
      found = sealed.read_record(path)
    except ValueError as error:
      named = str(path) in str(error)
    else:  # white space, or the name of the checksum itself
      named = {name: found[name] for name in content} == content
    assert named


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b"{"])
def test_what_is_no_record_is_named(data, tmp_path):
  (tmp_path / "a.json").write_bytes(data)
  with pytest.raises(ValueError, match=r"a\.json is damaged, it"):
    sealed.read_record(tmp_path / "a.json")


def test_a_record_of_an_earlier_version_is_read_as_it_is(tmp_path):
  (tmp_path / "a.json").write_text(json.dumps({"k": 3}))
  assert sealed.read_record(tmp_path / "a.json") == {"k": 3}


@pytest.mark.parametrize("damage", [lambda x: x[:-1], lambda x: b"X" + x[1:], lambda x: x[:30], lambda x: b""])
def test_sealed_bytes_come_back_and_damage_is_named(damage, tmp_path):
  path = tmp_path / "a"
  sealed.write_sealed(path, b"features" * 9)
  assert sealed.read_sealed(path) == b"features" * 9
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(ValueError, match="a is damaged"):
    sealed.read_sealed(path)
