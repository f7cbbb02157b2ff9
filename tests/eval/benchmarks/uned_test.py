"""UnED's training features and ILIAS's linear layers, from look-alikes in the formats of ILIAS's own programs."""

import math
import zipfile

import h5py
import numpy as np
import pytest

from eval.benchmarks.uned import main, read_linear_layer
from qat_jax.adapter import Adapter
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import FeatureStore
from tests.eval.tiny import WIDTH, run, unit

ITEMS = [f"images/pic_{n}.jpg" for n in range(119)] + ["images/#U00e9, #U00fc_#U0159.jpg"]  # as ILIAS escapes é, ü_ř
INSTANCES = [(n // 60, n // 3 % 20) for n in range(120)]  # labels are numbered anew in each of the two domains
LINES = [f"{name},{i},{d}" for name, (d, i) in zip([*ITEMS[:-1], "images/é, ü_ř.jpg"], INSTANCES, strict=True)]
ROWS = unit(120).astype(np.float16)


def put(folder, rows=ROWS, index=ITEMS, lines=LINES):
  with h5py.File(folder / "u.hdf5", "w") as file:
    file.create_dataset("features", data=rows, compression="gzip", compression_opts=0)
    if index:
      file.create_dataset("index", data=index, dtype=h5py.string_dtype("ascii"))
  (folder / "list.txt").write_text("\n".join(lines) + "\n")
  return [str(folder / name) for name in ("u.hdf5", "list.txt", "set")]


def test_published_features_become_a_set_with_instances_of_label_and_domain(tmp_path, capsys):
  main(put(tmp_path))
  main(put(tmp_path))  # the same again is no error
  val, rows = RetrievalSet.open(tmp_path / "set").split("val"), {}
  for place in ("train", "val/gallery", "test/gallery"):
    store = FeatureStore.open(tmp_path / "set" / place, "img")
    assert f"{len(store)} in {place}" in capsys.readouterr().out or place != "train"
    rows |= {name: (*store.metadata().slice(n, 1).to_pylist(), store[n]) for n, name in enumerate(store.ids)}
  assert len(rows) == 120 and len(val.queries["image"]) == len(val.gallery) == 6  # all have another of their instance
  for name, (domain, label), row_D in zip(ITEMS, INSTANCES, ROWS, strict=True):
    assert rows[name][0] == {"id": name, "instance": f"{domain}/{label}", "domain": domain}
    np.testing.assert_array_equal(rows[name][1], row_D)
  assert not (tmp_path / "set.features").exists()


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"index": None}, "has ['features'], it should have `features` and `index`"),
    ({"lines": LINES[:-1]}, "u.hdf5 has 120 features, "),
    ({"lines": [*LINES[1:], LINES[0]]}, "row 0 is 'images/pic_0.jpg', line 1 of "),
    ({"lines": [LINES[0], "images/pic_1.jpg,0.0,0", *LINES[2:]]}, "line 2 is 'images/pic_1.jpg,0.0,0'; wanted PATH,"),
    ({"lines": ["images/pic_0.jpg,0", *LINES[1:]]}, "line 1 is 'images/pic_0.jpg,0'; wanted PATH,LABEL,DOMAIN"),
    ({"index": ITEMS[:1] * 120, "lines": LINES[:1] * 120}, "the id 'images/pic_0.jpg' comes twice"),
    ({"rows": 3 * ROWS}, "not 1; normalise"),
    ({"rows": np.ones((120, WIDTH), int)}, "features are int64"),
  ],
)
def test_files_that_do_not_fit_are_named_in_a_line_and_nothing_is_written(tmp_path, capsys, wrong, words):
  with pytest.raises(SystemExit):
    main(put(tmp_path, **wrong))
  (line,) = capsys.readouterr().err.splitlines()
  assert words in line and not (tmp_path / "set").exists()


def write_layer(path, **tensors):
  """Writes a state dict as torch.save does for a layer on a GPU, its pickle in the words of the text protocol."""
  tuple_of = lambda numbers: f"({''.join(f'I{n}' + chr(10) for n in numbers)}t"
  entries, ordered = "", "ccollections\nOrderedDict\n(tR"
  with zipfile.ZipFile(path, "w") as archive:
    for key, (name, tensor) in enumerate(tensors.items()):
      archive.writestr(f"layer/data/{key}", np.asarray(tensor, "<f4").tobytes())
      storage = f"(Vstorage\nctorch\nFloatStorage\nV{key}\nVcuda:0\nI{tensor.size}\ntQI0\n"
      strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim)]
      about = f"({storage}{tuple_of(tensor.shape)}{tuple_of(strides)}I00\n{ordered}tR"
      entries += f"V{name.replace('_', '.')}\nctorch._utils\n_rebuild_tensor_v2\n{about}s"
    archive.writestr("layer/data.pkl", f"{ordered}{entries}(dV_metadata\n{ordered}sb.")
  return str(path)


def test_a_published_layer_maps_queries_and_items_and_has_a_row(tmp_path, config, workdir):
  weight_ED, bias_E = np.random.default_rng(0).normal(size=(5, WIDTH)), unit(1)[0, :5]
  path = write_layer(tmp_path / "siglip.pth", layer_weight=weight_ED, layer_bias=bias_E)
  head, x_ND = read_linear_layer(path, WIDTH), unit(7, 3)
  expected_NE = x_ND @ weight_ED.T + bias_E
  expected_NE /= np.linalg.norm(expected_NE, axis=1, keepdims=True)
  np.testing.assert_allclose(Adapter(WIDTH, {"image": head})(x_ND).query, expected_NE, atol=1e-5)
  np.testing.assert_allclose(head.prepare(x_ND), expected_NE, atol=1e-5)
  config.eval.methods = ("plain", "published_linear")
  assert {s["reason"][:17] for s in run(config, workdir)["skipped"]} == {"no layer is given"}
  metrics = run(config, workdir, linear_layer=path)
  assert {c["method"]: c["parameters"] for c in metrics["costs"]} == {"plain": 0, "published_linear": 7 * WIDTH + 5}


def test_a_layer_that_does_not_fit_is_named(tmp_path):
  weight_ED, bias_E = np.ones((5, WIDTH)), np.ones(5)
  whole = write_layer(tmp_path / "a.pth", layer_weight=weight_ED, layer_bias=bias_E)
  with pytest.raises(ValueError, match=r"a.pth takes features 8 wide, these are 9 wide"):
    read_linear_layer(whole, 9)
  for parts in ({"layer_weight": weight_ED}, {"layer_weight": weight_ED, "layer_bias": np.ones(4)}, {"weight": bias_E}):
    with pytest.raises(ValueError, match=r"b.pth has .*wanted layer.weight \(E×D\) and layer.bias"):
      read_linear_layer(write_layer(tmp_path / "b.pth", **parts), WIDTH)
