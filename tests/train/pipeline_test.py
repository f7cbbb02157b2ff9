import json
import shutil

import numpy as np
import pytest
from PIL import Image

import qat_jax
from configs import features as recipe
from eval.pipeline import evaluate
from qat_jax.features.retrieval_set import RetrievalSet
from qat_jax.features.store import write_features
from qat_jax.fit import memory
from qat_jax.fit.parts import head_of
from qat_jax.fit.training import Training
from qat_jax.sealed import read_record, write_record
from train import check, pipeline
from train.pipeline import train

WIDTH, INSTANCES = 8, 40


def retrieval_set(root):
  """Writes instances whose captions are a fixed rotation of their images: a linear map finds them, cosine does not."""
  rng = np.random.default_rng(0)
  rotation_DD, _ = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))

  def part(first, views, kind):
    instance_N = np.repeat(np.arange(first, first + INSTANCES), views)
    centre_ID = np.random.default_rng(first).normal(size=(INSTANCES, WIDTH))
    clean_ND = np.repeat(centre_ID, views, axis=0)
    noisy_ND = clean_ND + (0.5 if kind == "image" else 0.2) * rng.normal(size=clean_ND.shape)
    feature_ND = noisy_ND @ rotation_DD if kind == "text" else noisy_ND
    names = [f"{kind}{i}" for i in instance_N]
    ids = [f"{kind}-{first}-{views}-{n}" for n in range(len(instance_N))]
    return feature_ND.astype(np.float32), {"id": ids, "instance": [name.removeprefix(kind) for name in names]}

  images, columns = part(0, 3, "image")
  texts, _ = part(0, 3, "text")
  write_features(root / "train", {"img": images, "text": texts}, columns)
  for split, first in (("val", 1000), ("test", 2000)):
    features, columns = part(first, 2, "image")
    write_features(root / split / "gallery", {"img": features}, columns)
    for name, kind in (("text_queries", "text"), ("image_queries", "image")):
      features, columns = part(first, 1, kind)
      write_features(root / split / name, {"img" if kind == "image" else "text": features}, columns)
  return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("run")
  config = recipe.get_config()
  config.data.root = str(retrieval_set(folder / "set"))
  config.form = "query_only"
  config.forms.query_only.hidden = 32
  config.trained.image = "never"
  config.memory.update({"text": 100, "image": 50})
  config.train.update({"batch_size": 32, "steps": 40})
  config.static_train.update({"steps": 80, "learning_rate": 3e-2})
  config.validation.every = 20
  train(config, folder / "run")
  return config, folder / "run"


def test_the_whole_path_beats_the_plain_score_where_a_linear_map_is_the_answer(run):
  config, workdir = run
  evaluate(config, workdir)
  metrics = json.loads((workdir / "eval" / "metrics.json").read_text())
  value = {(r["query"], r["method"]): r["value"] for r in metrics["results"] if r["metric"] == "map"}
  assert value["text", "static"] > value["text", "plain"] + 0.2
  assert value["text", "adapted"] > value["text", "plain"] + 0.2
  left_out = {(s["query"], s["method"]) for s in metrics["skipped"]}  # steps that what serves does not have
  assert all(method.startswith("head_") for _, method in left_out)
  assert set(value) | left_out == {(q, m) for q in ("text", "image") for m in config.eval.methods}
  report = (workdir / "eval" / "report.html").read_text()
  assert "text queries: " in report
  assert "the simplest that is within one standard error of the best on validation" in report
  assert "Training had seen" not in report
  assert metrics["provenance"]["versions"]["jax"]
  curves = [json.loads(line) for line in (workdir / "eval" / "curves.jsonl").read_text().splitlines()]
  assert {row["name"] for row in curves} == {"text/static", "text/static_mapped", "text/query_only"}


def test_features_that_changed_since_training_are_told_before_they_are_measured(run, tmp_path, capsys):
  config, workdir = run[0].copy_and_resolve_references(), shutil.copytree(run[1], tmp_path / "run")
  config.eval.methods = ("plain",)
  evaluate(config, workdir)
  assert "was trained on other features" not in capsys.readouterr().out
  config.data.root = str(shutil.copytree(config.data.root, tmp_path / "set"))
  path = next((tmp_path / "set/train/img_emb").glob("*.npy"))
  np.save(path, np.load(path)[::-1])
  with pytest.raises(ValueError, match=f"{path.name} is not what was written"):
    evaluate(config, workdir)
  (tmp_path / "set/train/meta.json").unlink()
  evaluate(config, workdir)
  assert "was trained on other features than those of" in (told := capsys.readouterr().out)
  assert "images.features was " in told and "texts.features was " not in told


def test_the_best_heads_are_tried_with_every_part(run):
  _, workdir = run
  for query_type, pairs in (("text", 100), ("image", 50)):
    folder = workdir / "candidates" / query_type
    known = {path.parent.name: qat_jax.load(path.parent) for path in folder.glob("*/adapter.json")}
    heads = {name: one for name, one in known.items() if head_of(name) == name}
    reached = {name: one.info["val_map"] for name, one in heads.items()}
    untouched = {name: reached[name] for name, one in heads.items() if one.head(query_type).space == "frozen"}
    bases = {name for name in heads if f"{name}_levelled" in known}
    assert {reached[name] for name in bases} == {max(reached.values()), max(untouched.values())}
    for base in bases:
      both = f"{base}_remembering_captioned"
      added = {f"{base}_remembering", both, f"{base}_levelled", f"{base}_remembering_levelled", f"{both}_levelled"}
      assert added < known.keys()
      assert len(known[f"{base}_remembering"].head(query_type).variables["constants"]["images"]) <= pairs
      assert known[both].info["offline_seconds"] > known[base].info["offline_seconds"]
      assert known[both].head(query_type).items_wide(WIDTH) == 2 * WIDTH
    assert all(len(np.load(path)) == INSTANCES for path in folder.glob("*/validation.npy"))


def test_a_second_run_finds_every_stage_on_disk(run, monkeypatch):
  config, workdir = run
  before = {path: path.stat().st_mtime_ns for path in (workdir / "candidates").rglob("*") if path.is_file()}
  monkeypatch.setattr("train.loop.train_head", None)
  train(config, workdir)
  assert before == {path: path.stat().st_mtime_ns for path in (workdir / "candidates").rglob("*") if path.is_file()}


def test_other_numbers_to_try_are_another_candidate(run, monkeypatch):
  config, workdir = run
  monkeypatch.setitem(memory.REMEMBERING, "weight", (0.5,))
  with pytest.raises(ValueError, match=r"_remembering was made with other .*weight was .*0\.25.* is "):
    train(config, workdir)


def test_the_adapter_says_what_serves_and_serves_it(run):
  _, workdir = run
  adapter = qat_jax.load(workdir)
  chosen = adapter.info["chosen"]["text"]
  assert chosen["val_map"][chosen["name"]] > chosen["val_map"][chosen["best"]] - 0.05
  assert chosen["steps"][-1]["name"] == chosen["name"]
  served = qat_jax.load(workdir / "candidates" / "text" / chosen["name"])
  query_QD = np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)
  np.testing.assert_array_equal(adapter(query_QD, "text").query, served(query_QD, "text").query)


def test_an_adapter_knows_the_encoder_of_its_features(run, tmp_path):
  config, workdir = run[0].copy_and_resolve_references(), tmp_path / "run"
  assert "encoder" not in qat_jax.load(run[1]).info
  for part in ("text", "image"):
    config.trained[part] = "never"
  config.memory.update({"text": 0, "image": 0})
  config.encoder.name = "clip"
  assert train(config, workdir).encoder == ("clip", None)
  root = shutil.copytree(config.data.root, tmp_path / "set")
  meta = read_record(root / "val/gallery/meta.json")
  write_record(root / "val/gallery/meta.json", meta | {"encoder": "siglip", "revision": "7"})
  config.data.root = str(root)  # what the features say of themselves counts more
  assert train(config, workdir).encoder == ("siglip", "7")
  config.eval.methods = ("plain",)
  evaluate(config, workdir)
  write_record(root / "val/gallery/meta.json", meta | {"encoder": "siglip", "revision": "8"})
  with pytest.raises(ValueError, match="set is of the encoder siglip@8, the adapter in .*run of siglip@7"):
    evaluate(config, workdir)


def pictures(folder, count):
  """Returns the config of a folder of pictures, which are numbered by their colour."""
  folder.mkdir()
  for i in range(count):
    Image.new("RGB", (4, 4), (i, 0, 255 - i)).save(folder / f"{i}.png")
  config = recipe.get_config()
  config.data.update({"source": "folder", "folder": str(folder)})
  return config


def test_pictures_alone_are_refused_before_an_encoder_is_looked_for(tmp_path):
  config = pictures(tmp_path / "pictures", 30)
  config.encoder.name = "nowhere/to-be-found"
  with pytest.raises(ValueError, match=r"30 images .* neither captions nor.*Add captions"):
    train(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_of_150_pictures_one_that_is_broken_and_one_without_a_caption_are_left_out_and_long_ones_cut(tmp_path, capsys):
  config = pictures(tmp_path / "pictures", 150)
  config.encoder.update({"name": "toy_clip", "batch_size": 16})
  split = ["train"] * 124 + ["val"] * 13 + ["test"] * 13
  captions = [{7: "", 8: "red " * 50}.get(i, f"no. {i}") for i in range(150)]
  lines = [f"{i}.png,{caption},{part}" for i, (caption, part) in enumerate(zip(captions, split, strict=True))]
  (tmp_path / "pictures/captions.csv").write_text("file,caption,split\n" + "\n".join(lines))
  (tmp_path / "pictures/130.png").write_bytes(b"no picture")
  data = pipeline.RetrievalSet.open(pipeline.features(config, tmp_path / "run"))
  assert (len(data.train_images), len(data.train_texts), len(data.split("val").gallery)) == (123, 123, 12)
  meta = read_record(tmp_path / "run/features/train/meta.json")
  assert (meta["unreadable"], meta["truncated_captions"]) == (0, 1)
  printed = capsys.readouterr()
  said = printed.out + printed.err
  assert "1 captions were longer than the 36 tokens that are read; cut" in said
  assert "left out: 1 pictures that cannot be read (130.png: " in said
  assert "left out: 1 items without a caption (7.png)" in said
  (tmp_path / "pictures/140.png").write_bytes(b"no picture")  # the second of 150 is more than 1%
  with pytest.raises(ValueError, match=r"2 images of 150 cannot be read, more than 1%: '140.png'"):
    pipeline.features(config, tmp_path / "again")


def test_pictures_without_labels_become_what_image_heads_are_trained_and_chosen_on(tmp_path):
  (tmp_path / "pictures").mkdir()
  for i in range(30):
    Image.new("RGB", (40, 32), (8 * i, 255 - 8 * i, 90)).save(tmp_path / f"pictures/{i}.png")
  config = recipe.get_config()
  config.data.update({"source": "folder", "folder": str(tmp_path / "pictures"), "views": 2})
  config.encoder.name = "toy_clip"
  check.config(config, 1)
  data = RetrievalSet.open(pipeline.features(config, tmp_path / "run"))
  assert pipeline.servable(data) == ["image"]
  training = Training.of(data, "image")
  assert len(training.instance) == 24 * 3 and training.second_views == 1
  assert [len(data.split(name).queries["image"]) for name in ("val", "test")] == [3, 3]
  assert data.train_images.column("view").tolist() == [0, 1, 2] * 24
  views_ND = np.asarray(data.train_images[:3], np.float32)
  assert not np.array_equal(views_ND[0], views_ND[1])
  config.data.root = "somewhere"
  with pytest.raises(ValueError, match=r"config.data.views is 2; wanted 0, or made views of pictures"):
    check.config(config, 1)


def test_made_views_are_known_from_the_features(run, tmp_path, monkeypatch):
  def told(config, material, folder):
    raise KeyboardInterrupt(material.made_views)

  monkeypatch.setattr(pipeline, "candidates", told)
  config, folder = run[0].copy_and_resolve_references(), tmp_path / "set"
  with pytest.raises(KeyboardInterrupt, match="False"):
    train(config, tmp_path / "run")
  shutil.copytree(config.data.root, folder)
  rows = 6
  images_ND = np.eye(rows, WIDTH, dtype=np.float32)
  ids = [f"{name}{view}" for name in "ab" for view in ("", "#view1", "#view2")]
  shutil.rmtree(folder / "train")
  write_features(folder / "train", {"img": images_ND, "text": images_ND}, {"id": ids, "instance": list("aaabbb")})
  config.data.root = str(folder)
  with pytest.raises(KeyboardInterrupt, match="True"):
    train(config, tmp_path / "views")


@pytest.mark.parametrize(
  ("made", "ignore", "served"), [(True, ("scene",), "off_words"), (False, ("scene",), None), (True, (), None)]
)
def test_what_a_recipe_ignores_serves_where_only_made_views_could_judge_it(tmp_path, monkeypatch, made, ignore, served):
  def chosen(query_type, fitted, gate, told):
    raise KeyboardInterrupt(f"told {told}")

  config = recipe.get_config()
  config.data.root = str(retrieval_set(tmp_path / "set"))
  config.aspects.ignore, config.encoder.name = ignore, "toy_clip"
  monkeypatch.setattr(pipeline, "VIEW", "" if made else "#view")  # any id holds the first
  monkeypatch.setattr(pipeline, "candidates", lambda *_: {})
  monkeypatch.setattr(pipeline, "choose", chosen)
  with pytest.raises(KeyboardInterrupt, match=f"told {served}"):
    train(config, tmp_path / "run")


def test_aspects_that_a_recipe_ignores_reach_the_candidates(tmp_path, monkeypatch):
  def told(config, material, folder):
    raise KeyboardInterrupt(material.off_words and sorted(material.off_words.settings["ignore"]))

  monkeypatch.setattr(pipeline, "candidates", told)
  config = recipe.get_config()
  config.data.root = str(retrieval_set(tmp_path / "set"))
  with pytest.raises(KeyboardInterrupt, match="None"):
    train(config, tmp_path / "run")
  config.aspects.ignore = ("scene", "lighting")
  with pytest.raises(ValueError, match="config.aspects.ignore needs the encoder of the features, and those in "):
    train(config, tmp_path / "run")
  config.encoder.name = "toy_clip"
  with pytest.raises(KeyboardInterrupt, match="lighting.*scene"):
    train(config, tmp_path / "run")


def test_a_set_that_training_has_seen_is_refused_or_said_to_be(run, tmp_path):
  config = run[0].copy_and_resolve_references()
  config.data.root = str(shutil.copytree(config.data.root, tmp_path / "set"))
  shutil.rmtree(tmp_path / "set/train")
  shutil.copytree(tmp_path / "set/test/gallery", tmp_path / "set/train")
  config.trained.image = config.trained.text = "never"
  for name in ("memory", "captions", "levelled"):
    config[name].update({"text": 0, "image": 0})
  shutil.rmtree(tmp_path / "set/val/text_queries")
  shutil.rmtree(tmp_path / "set/test/text_queries")
  with pytest.raises(ValueError, match="train/ holds 40 instances of test"):
    train(config, tmp_path / "run")
  config.data.allow_shared_instances = True
  train(config, tmp_path / "run")
  config.eval.methods = ("plain", "adapted")
  evaluate(config, tmp_path / "run")
  assert "Training had seen 40 instances of test, " in (tmp_path / "run/eval/report.html").read_text()
