import dataclasses
import json
import os
import subprocess
import sys

import chex
import jax
import jax.export
import jax.numpy as jnp
import pytest
import yaml

import qat_jax
from qat_jax import cli, hub
from qat_jax.adapter import Adapter
from qat_jax.sharing import card, share
from tests.hub import serving

WIDTH = 8
INFO = {
  "encoder": "owner/clip",
  "chosen": {"text": {"name": "adaptive", "val_map": {"plain": 0.05, "adaptive": 0.2}}},
  "made_from": {
    "train": {"images": {"rows": 1200}, "texts": {"rows": 1200}},
    "val": {"queries": {"text": {"rows": 300}}},
  },
  "config": {"data": {"root": "/home/somebody/secret/shop"}, "benchmark": {"name": ""}},
  "versions": {"python": "3.11", "jax": "0.10"},
  "seed": 0,
  "commit": "abc",
  "hardware": "1 × cpu",
}


@pytest.fixture(scope="module")
def adapter(head):
  text = head("adaptive", hidden=8, rank=2, token_hidden=8)
  inner = {"form": "query_only", "settings": {"hidden": 8}, "pairs": 5}
  return Adapter(WIDTH, {"text": text, "image": head("remembering", **inner)}, INFO)


def report(adapter):
  def row(method, metric, value):
    interval = [value - 0.01, value + 0.01]
    return {"query": "text", "method": method, "metric": metric, "value": value, "interval": interval, "queries": 860}

  results = [row(m, k, v) for m, v in (("plain", 0.05), ("adapted", 0.21)) for k in ("map", "recall@1")]
  difference = row("adapted", "map", 0.16) | {"against": "plain"}
  return {"results": results, "differences": [difference], "provenance": {"adapter": adapter.fingerprint}}


@pytest.fixture
def run(adapter, tmp_path):
  adapter.save(tmp_path / "run/adapter")
  (tmp_path / "run/eval").mkdir()
  (tmp_path / "run/eval/metrics.json").write_text(json.dumps(report(adapter)))
  return tmp_path / "run"


def test_an_exported_adapter_is_the_same_adapter_without_the_paths_of_its_machine(adapter, run, tmp_path):
  qat_jax.export(run, tmp_path / "mine")
  again = qat_jax.load(tmp_path / "mine")
  assert again.fingerprint == adapter.fingerprint
  assert again.info == {**adapter.info, "config": {"data": {"root": "shop"}, "benchmark": {"name": ""}}}
  assert not [path for path in (tmp_path / "mine").iterdir() if b"somebody" in path.read_bytes()]
  config = json.loads((tmp_path / "mine/config.json").read_text())
  assert (config["encoder"], config["width"], config["heads"]["text"]["form"]) == ("owner/clip", 8, "adaptive")


@pytest.mark.parametrize(
  ("value", "left"),
  [("/a/b/c/", "c"), ("~/x", "x"), ("../data/y", "y"), ("C:\\me\\z", "z"), ("owner/clip", "owner/clip"), ("gs", "gs")],
)
def test_of_a_path_the_last_part_is_left(value, left):
  assert card.shareable({"a": {"b": [value]}}) == {"a": {"b": [left]}}


def test_the_card_says_what_was_measured_and_no_more(adapter, run, tmp_path):
  qat_jax.export(run, tmp_path / "mine", license_="apache-2.0")
  text = (tmp_path / "mine/README.md").read_text()
  front = yaml.safe_load(text.split("---")[1])
  assert front["library_name"] == "qat-jax" and front["base_model"] == "owner/clip"
  assert front["license"] == "apache-2.0"
  assert "| text (860) | plain score | 5.0 [4.0, 6.0] | 5.0 [4.0, 6.0] | – |" in text
  assert (
    "| text (860) | adapted, whole gallery | 21.0 [20.0, 22.0] | 21.0 [20.0, 22.0] | +16.0 [+15.0, +17.0] |" in text
  )
  assert "plain 5.0, adaptive 20.0" in text and "1,200 images, 1,200 texts" in text
  assert "image queries: 5 rows of 8 numbers (images), 5 rows of 8 numbers (queries)." in text


def test_an_adapter_is_not_exported_into_a_folder_of_something_else(run, tmp_path):
  (tmp_path / "shop/img_emb").mkdir(parents=True)
  with pytest.raises(FileExistsError, match=r"shop holds \['img_emb'\] already, and no adapter"):
    share.export(run, tmp_path / "shop")
  assert [path.name for path in (tmp_path / "shop").iterdir()] == ["img_emb"]
  (tmp_path / "clone").mkdir()
  for name in (".gitattributes", "README.md"):
    (tmp_path / "clone" / name).touch()
  share.export(run, tmp_path / "clone")


def test_a_report_of_another_adapter_is_left_out(adapter, head, run, tmp_path):
  metrics = run / "eval/metrics.json"
  other = report(Adapter(WIDTH, {"text": head("static")}))
  for content in (other, other | {"provenance": {}}):  # the second: of an evaluation that did not say
    metrics.write_text(json.dumps(content))
    qat_jax.export(run, tmp_path / "mine")
    assert "No evaluation of this adapter was found" in (tmp_path / "mine/README.md").read_text()
  metrics.write_text("{")
  with pytest.raises(ValueError, match="no report of an evaluation"):
    qat_jax.export(run, tmp_path / "mine")


def test_a_card_of_little_knowledge_claims_little(head):
  text = card.card(WIDTH, {"text": head("static")}, {}, None, None)
  front = yaml.safe_load(text.split("---")[1])
  assert "license" not in front and "base_model" not in front
  assert "Data: not recorded" in text and "Weights and statistics" in text and "None" not in text


def test_a_program_folds_queries_as_the_adapter_does(adapter, run, tmp_path, features):
  queries = 3
  qat_jax.export(run, tmp_path / "mine", format_="stablehlo", queries=queries)
  config = json.loads((tmp_path / "mine/config.json").read_text())
  for name in ("text", "image"):
    about = config["stablehlo"][name]
    code = (tmp_path / "mine" / about["file"]).read_bytes()
    assert b".py" not in code  # nor any other path of this machine
    assert (about["input"], about["output"], about["dtype"]) == ([queries, WIDTH], [queries, WIDTH], "float32")
    # what is run is what the file holds: of the other program only the shapes are taken
    other = jax.export.export(jax.jit(lambda x: -x))(jnp.zeros(about["input"]))
    program = dataclasses.replace(other, mlir_module_serialized=code)
    expected = qat_jax.fold(adapter(features[:queries], name))
    chex.assert_trees_all_close(program.call(features[:queries]), expected, atol=1e-6)
  qat_jax.export(run, tmp_path / "mine")
  assert not list((tmp_path / "mine").glob("*.stablehlo"))


def test_only_a_released_checkpoint_has_a_dtype(run, tmp_path):
  with pytest.raises(ValueError, match="'adaptive' for text queries: it is no released checkpoint"):
    qat_jax.export(run, tmp_path / "mine", dtype="bfloat16")
  with pytest.raises(ValueError, match="the format is 'tflite'"):
    qat_jax.export(run, tmp_path / "mine", format_="tflite")


def test_an_adapter_comes_back_from_the_hub_as_it_was_sent(adapter, run, tmp_path, capsys):
  cli.main(["export", str(run), str(tmp_path / "mine")])
  (tmp_path / "mine/private.txt").write_text("not ours to send")
  code = "\n".join(
    [
      "import pathlib, sys, qat_jax",
      "from qat_jax import cli",
      "cli.main(['push', sys.argv[1], 'owner/name', '--message=first'])",
      "adapter = qat_jax.load('hf://owner/name')",
      "adapter.save(sys.argv[2])",
    ]
  )
  with serving() as server:
    server.files["params-old.safetensors"] = b"of an adapter before"
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": server.address, "HF_HUB_DISABLE_XET": "1"}
    home |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    command = [sys.executable, "-c", code, tmp_path / "mine", tmp_path / "back"]
    done = subprocess.run(command, env=os.environ | home | {"HF_TOKEN": "secret"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    refused = subprocess.run(command, env=os.environ | home | {"HF_TOKEN": "wrong"}, capture_output=True, text=True)
  assert sorted(server.files) == sorted(p.name for p in (tmp_path / "mine").iterdir() if p.name != "private.txt")
  assert server.commits == ["first"]
  assert b"hf://owner/name" in server.files["README.md"]
  back = qat_jax.load(tmp_path / "back")
  assert back.fingerprint == adapter.fingerprint and back.info["source"].startswith("hf://owner/name@")
  assert refused.returncode == 1 and refused.stderr.startswith("error: owner/name was not sent: ")
  assert refused.stderr.count("\n") == 1 and "hf auth login" in refused.stderr


def test_what_was_not_exported_is_not_sent(adapter, tmp_path, monkeypatch):
  monkeypatch.setattr(hub, "upload", lambda *_: pytest.fail("it was sent"))
  adapter.save(tmp_path / "mine")
  with pytest.raises(ValueError, match=r"has no config\.json; export the adapter first"):
    qat_jax.push(tmp_path / "mine", "owner/name")
  qat_jax.export(adapter, tmp_path / "mine")
  with pytest.raises(ValueError, match="wanted hf://owner/name"):
    qat_jax.push(tmp_path / "mine", "name")
  (params,) = (tmp_path / "mine").glob("params-*")
  params.write_bytes(params.read_bytes()[:-1])
  with pytest.raises(ValueError, match="missing or damaged"):
    qat_jax.push(tmp_path / "mine", "owner/name")
