import subprocess
import sys

import jax
import matplotlib.image
import numpy as np
import pytest

from eval.speed import search, tools, ways
from qat_jax.models.quari import Released


def run(capsys, *words):
  search.main(["--items=600", "--width=16", "--rank=2", "--queries=2", *words])
  return capsys.readouterr().out.splitlines()


def test_the_ways_that_are_compared_agree():
  adaptation = tools.make_adaptation(4, 32, 3, 0.5 * 0.7 ** np.arange(3))
  gallery_ND = tools.make_gallery(1200, 32, "float32")
  named = ways.ways(adaptation, gallery_ND, 20)
  expected_QK = named["rank"].run().ids
  for name in ("dense", "dense_blocks", "factored"):
    np.testing.assert_array_equal(named[name].run(), expected_QK)
  assert not np.array_equal(named["plain_rank"].run().ids, expected_QK)


def test_a_dense_form_that_the_memory_cannot_hold_is_not_run(monkeypatch):
  monkeypatch.setattr(ways, "free_bytes", lambda: 2 * 4 * 100 * 32 * 4)
  gallery_ND = tools.make_gallery(101, 32, "float32")
  named = ways.ways(tools.make_adaptation(4, 32, 3, np.ones(3)), gallery_ND, 20)
  assert named["dense"] == "not run: its mapped items take 0.0 GB"


def test_the_table_prints_where_faiss_is_missing(monkeypatch):
  monkeypatch.setitem(sys.modules, "faiss", None)
  adaptation = tools.make_adaptation(2, 16, 2, np.ones(2))
  named = ways.library_ways(adaptation, tools.make_gallery(100, 16, "float32"), 5)
  assert "not installed" in search.way_table([], {"faiss_flat": named["faiss_flat"]})


def test_the_command_compares_the_named_ways_and_refuses_others(capsys, tmp_path):
  out = run(capsys, "--only=plain,rank", f"--profile={tmp_path}")
  assert [line.split(" | ")[0] for line in out[4:]] == ["| rank", "| plain"]
  assert out[5].split(" | ")[6] == "1"  # plain, in times of plain
  assert list(tmp_path.rglob("*.xplane.pb"))
  with pytest.raises(SystemExit, match="--only names plian; use some of dense"):
    run(capsys, "--only=plain,plian")


def test_growth_is_drawn(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(search, "SIZES", (200, 400))
  out = run(capsys, f"--growth={tmp_path / 'growth.png'}", "--fewest=1")
  assert len(out) == 4 + 2 * len(search.BATCHES) * 2
  assert matplotlib.image.imread(tmp_path / "growth.png").std() > 0


def test_a_gallery_on_disk_is_searched_plainly_and_adapted():
  words = ["--streamed", "--items=2000", "--width=16", "--rank=2", "--queries=2", "--repeats=1"]
  done = subprocess.run([sys.executable, "-m", "eval.speed.search", *words], check=True, capture_output=True, text=True)
  rows = [line.split(" | ") for line in done.stdout.splitlines()[-4:]]
  forms = ["plain", "plain_8_bits", "adapted", "adapted_8_bits"]
  assert [row[0] for row in rows] == [f"| streamed_{form}" for form in forms]
  assert rows[0][3] == "1 |" and all(float(row[1]) > 0 for row in rows)


def test_random_rows_are_of_unit_length_and_a_chunk_differs_from_the_next():
  first, second = tools.random_chunks(48, 16, step=32)
  assert (first.shape, second.shape, first.dtype) == ((32, 16), (16, 16), np.float16)
  np.testing.assert_allclose(np.linalg.norm(np.concatenate([first, second]).astype(float), axis=1), 1, atol=1e-2)
  assert not np.array_equal(first[:16], second)


def test_memory_is_watched():
  with tools.watched_memory(0.001) as held:
    block = np.ones(1 << 25)
  assert max(held) - held[0] > 0.9 * block.nbytes / 1e6


def test_half_the_tokens_cost_half_the_operations():
  settings = ways.RELEASED | {"hidden": 64, "rank": 16, "layers": 1, "steps": 1}
  short, full = (ways.network_way(Released(32, **settings, shared_tokens=shared), 2) for shared in (True, False))
  assert short.run().query.shape == (2, 32)
  assert 1.5 < full.flops / short.flops < 2.1


@pytest.mark.parametrize("shared", [True, False])
def test_the_count_of_operations_is_that_of_the_encoder(shared):
  settings = ways.RELEASED | {"hidden": 64, "rank": 63, "layers": 4, "steps": 4}
  way = ways.network_way(Released(8, **settings, shared_tokens=shared), 1)
  length = 64 if shared else 127
  encoder = 16 * (24 * length * 64**2 + 4 * length**2 * 64)
  assert encoder < way.flops < 1.3 * encoder  # the rest: norms, softmax, decoders


def test_the_released_size_is_the_one_that_is_published():
  module = Released(768, **ways.RELEASED)
  adaptation = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), jax.numpy.ones((16, 768)))[0])
  assert adaptation.left.shape == (16, 768, 64)
