import contextlib
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import qat_jax
from configs import demo, features
from qat_jax import words
from qat_jax.fit.candidates import write_candidate
from qat_jax.fit.training import Training
from qat_jax.models import forms
from qat_jax.models.head import Head
from qat_jax.types import Relevance
from qat_jax.validation import Validator
from train import check, gradient, material, plan
from train.gate import choose
from train.loop import LoopSettings
from train.material import Material
from train.step import LossSettings


def test_few_rows_are_looked_at_so_often_and_no_more():
  config = features.get_config()
  steps = lambda form, query_type, rows: gradient.loop_settings(config, form, query_type, rows).steps
  short = gradient.loop_settings(config, "adaptive", "image", 2048)  # 8 steps an epoch
  assert (short.steps, short.validate_every, short.patience) == (800, 80, 400)
  assert steps("adaptive", "text", 4096) == 25 * 16
  assert steps("adaptive", "text", 100) == gradient.FEWEST_STEPS
  whole = gradient.loop_settings(config, "adaptive", "text", 24000)
  assert (whole.steps, whole.validate_every, whole.patience) == (2000, 200, 600)
  static = gradient.loop_settings(config, "static", "image", 2048)
  assert (static.steps, static.validate_every, static.learning_rate) == (2000, 200, 2e-3)
  config.train.patience = 0  # never
  assert gradient.loop_settings(config, "adaptive", "text", 2048).patience == 0
  config.epochs.text = 0
  config.train.patience = 600
  assert gradient.loop_settings(config, "adaptive", "text", 2048) == whole


@pytest.mark.parametrize("name", ["features", "demo"])
def test_cheap_heads_are_trained_first_and_all_others_after_them(name):
  config = {"features": features, "demo": demo}[name].get_config()
  for query_type in ("text", "image"):
    training = Training(query_type, np.eye(4), np.eye(4), np.arange(4))
    order = [form for form, _ in plan.trained_forms(config, training).values()]
    assert order == sorted(order, key=lambda form: form != "static") and order.count("static") == 2
    assert order[-1] == config.form


def test_what_is_to_be_beaten_by_a_head_for_an_untouched_gallery_is_such_a_head(monkeypatch):
  known = {}
  for name, reached, space in (("plain", 0.3, "frozen"), ("static", 0.4, "frozen"), ("mapped", 0.5, "mapped-1")):
    head = SimpleNamespace(space=space)
    adapter = SimpleNamespace(heads={"text": head}, info={"train_val_map": reached + 0.01})
    known[name] = plan.Fitted(adapter, np.full(3, reached))
  for may_add, target, bases in ((0.2, 0.41, ["static", "mapped"]), (0.05, 0.46, ["mapped"])):
    monkeypatch.setattr(plan, "PARTS_ADD", may_add)
    assert plan.to_beat(known, True) == pytest.approx(0.51) and plan.to_beat(known, False) == pytest.approx(target)
    assert plan.bases(known) == bases


def test_a_head_that_can_no_longer_win_says_so(tmp_path, capsys):
  rows_ND = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
  training = Training("text", rows_ND, rows_ND, np.arange(16))
  material = Material(training, None, None, lambda head: 0.4, None, {})
  schedule = LoopSettings(seed=0, steps=12, validate_every=2, warmup_steps=2, target=0.5)
  settings = {"maps_gallery": False}
  head = gradient.by_gradient(material, "static", settings, 8, LossSettings(), schedule, tmp_path / "slow")
  assert head.note == "stopped at step 4 of 12, with no prospect of winning"
  assert f"text/slow: {head.note} (40.0, to beat 50.0)" in capsys.readouterr().out
  schedule = schedule._replace(target=0.3, steps=6)
  assert not gradient.by_gradient(material, "static", settings, 8, LossSettings(), schedule, tmp_path / "better").note


def test_where_nothing_is_left_to_gain_nothing_more_is_fitted(tmp_path, capsys):
  rows_ND = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
  gate = SimpleNamespace(precisions=lambda head: np.ones(3))
  material = Material(Training("text", rows_ND, rows_ND, np.arange(16)), None, None, lambda head: 1.0, gate, {})
  assert list(plan.candidates(features.get_config(), material, tmp_path)) == ["plain"]
  assert "text: plain answers every validation query perfectly; nothing else is tried" in capsys.readouterr().out


@pytest.mark.parametrize("made", [False, True])
def test_probabilistic_lda_is_not_fitted_to_made_views(tmp_path, made):
  rng = np.random.default_rng(0)
  instance = np.repeat(np.arange(40), 2)
  rows_ND = (rng.normal(size=(40, 6))[instance] + 0.8 * rng.normal(size=(80, 6))).astype(np.float32)
  relevance = Relevance([np.array([2 * i + 1]) for i in range(10)], [np.array([2 * i]) for i in range(10)])
  validator = Validator(rows_ND[60::2], rows_ND[60:], relevance, limit=0, seed=0)
  training = Training("image", rows_ND[:60], rows_ND[:60], instance[:60])
  material = Material(training, None, None, validator, validator, {}, made)
  config = features.get_config()
  config.trained.image, config.levelled.image = "never", 0
  assert ("plda" in plan.candidates(config, material, tmp_path)) != made


@pytest.mark.parametrize("width", [0, 9])
def test_items_with_captions_come_as_wide_as_was_asked(tmp_path, width):
  rng = np.random.default_rng(0)
  rows_ND = rng.normal(size=(60, 6)).astype(np.float32)
  text_ND = rows_ND[:, ::-1] + 0.1 * rng.normal(size=(60, 6)).astype(np.float32)
  relevance = Relevance([np.array([i]) for i in range(20)], [np.array([], int)] * 20)
  validator = Validator(text_ND[40:], rows_ND[40:], relevance, limit=0, seed=0)
  training = Training("text", text_ND[:40], rows_ND[:40], np.arange(40))
  config = features.get_config()
  config.trained.text, config.captions.width = "never", width
  fitted = plan.candidates(config, Material(training, text_ND[:40], None, validator, validator, {}), tmp_path)
  assert fitted["plain_remembering_captioned"].head.items_wide(6) == (width or 12)
  assert fitted["plain_remembering_captioned_levelled"].head.items_wide(6) == (width or 12) + 2
  settings = fitted["plain_remembering_captioned"].adapter.info["settings"]["captioned"]
  assert settings.get("width", 0) == width and ("width" in settings) == (width > 0)  # what was fitted before is kept


@pytest.mark.parametrize("best", [True, False])
def test_experts_stand_on_a_trained_map_where_that_is_the_best_static_head(tmp_path, monkeypatch, best):
  """Labels are mixed up, so that closed forms are poor; what stands for a trained map is good or bad."""
  rng = np.random.default_rng(0)
  scale_D = np.array([1, 1, 1, 1, 6, 6, 6, 6])
  views = lambda things: (np.repeat(things, 3, axis=0) + 0.2 * rng.normal(size=(3 * len(things), 8))) * scale_D
  thing_ID = rng.normal(size=(80, 8)) * ([1] * 4 + [0] * 4)
  hidden = lambda rows_ND: (rows_ND + scale_D * rng.normal(size=rows_ND.shape) * ([0] * 4 + [1] * 4)).astype(np.float32)
  train_ND, val_ND = hidden(views(thing_ID[:60])), hidden(views(thing_ID[60:]))
  relevance = Relevance([3 * i + np.arange(3) for i in range(20)], [np.array([3 * i]) for i in range(20)])
  validator = Validator(val_ND[::3], val_ND, relevance, limit=0, seed=0)
  training = Training("image", train_ND, train_ND, rng.permutation(np.repeat(np.arange(60), 3)))
  kernel_DD = np.diag([0.0] * 4 + [-1.0 if best else 9.0] * 4).astype(np.float32)

  def trained(material, form, settings, *rest):
    variables = forms.initialise(forms.FORMS[form](8, **settings), jax.random.key(0))
    moved = lambda x: kernel_DD if x.ndim == 2 else x
    return Head(form, settings, variables | {"params": jax.tree.map(moved, variables["params"])})

  monkeypatch.setattr(plan, "by_gradient", trained)
  monkeypatch.setattr(
    plan, "trained_forms", lambda config, training: {"static_mapped": ("static", {"maps_gallery": True})}
  )
  monkeypatch.setattr(plan.experts, "FREEDOM", 20)
  config = features.get_config()
  config.levelled.image = 0
  every = lambda: plan.candidates(config, Material(training, None, None, validator, validator, {}), tmp_path)
  with monkeypatch.context() as patch:  # a run that is killed once the experts are fitted

    def killed(folder, *rest):
      if folder.name == "static_mapped_experts":
        raise KeyboardInterrupt
      write_candidate(folder, *rest)

    patch.setattr(plan, "write_candidate", killed)
    with pytest.raises(KeyboardInterrupt) if best else contextlib.nullcontext():
      every()
  fitted = every()
  assert ("static_mapped_experts" in fitted) == best
  if best:
    served, info = fitted["static_mapped_experts"].head, fitted["static_mapped_experts"].adapter.info
    assert served.settings["form"] == "static" and info["settings"]["beside"]["form"] == "static"
    assert served.fingerprint == plan.experts.fit_experts(training, validator, fitted["static_mapped"].head).fingerprint
    assert every()["static_mapped_experts"].head.fingerprint == served.fingerprint


@pytest.mark.parametrize(("experts", "choice", "trained"), [(0.5, "auto", 6), (0.6, "auto", 2), (0.6, "always", 6)])
def test_no_network_is_trained_where_experts_lead_by_more_than_they_add(experts, choice, trained, tmp_path, capsys):
  config, rows = features.get_config(), np.eye(4, dtype=np.float32)
  config.trained.image = choice
  training = Training("image", rows, rows, np.array([0, 0, 1, 1]))
  one = Material(training, None, None, *[None] * 3)
  known = {"plain": 0.3, "plda": 0.5, "experts": experts}
  adapter = lambda reached: SimpleNamespace(
    heads={"image": SimpleNamespace(space="x")}, info={"train_val_map": reached}
  )
  fitted = {name: plan.Fitted(adapter(reached), np.full(3, reached)) for name, reached in known.items()}
  fitted["plain"].adapter.heads["image"].space = "frozen"
  names = []
  for candidate in plan.trained(plan.Plan(config, one, tmp_path, fitted)):
    names.append(candidate.name)
    fitted[candidate.name] = plan.Fitted(adapter(0.4), np.full(3, 0.4))
  assert names[:2] == ["static", "static_mapped"] and len(names) == trained
  assert ("experts lead the static heads by 10.0" in capsys.readouterr().out) == (trained == 2)


SCENES = ["on a beach", ["in a forest", "among trees"], "in a street", "in a kitchen"]


def told(tmp_path, encoder=("toy_clip", None), width=128, **aspects):
  """The recipe that ignores the scene, and a set of features of that encoder."""
  path = tmp_path / "aspects.json"
  path.write_text(json.dumps({"scene": SCENES, "colour": ["a red thing", "a blue thing"]}))
  config = features.get_config()
  config.aspects.update({"file": str(path), "ignore": ("scene",)} | aspects)
  return config, SimpleNamespace(encoder=encoder, root="ROOT", width=width)


@pytest.mark.parametrize("query_type", ["text", "image"])
@pytest.mark.parametrize("made", [False, True])
def test_off_words_serves_where_what_the_words_vary_along_hides_the_answer(tmp_path, query_type, made):
  config, data = told(tmp_path)
  config.trained.image = config.trained.text = "never"
  for part in ("memory", "captions", "levelled"):
    config[part].update({"text": 0, "image": 0})
  rng = np.random.default_rng(0)
  row_WD = words.encode(SCENES, qat_jax.load_encoder("toy_clip"))
  scene_DR = words.directions(row_WD).main_DR
  thing_ID = 0.2 * rng.normal(size=(40, 128))
  view_ND = lambda: thing_ID + 10 * rng.normal(size=(40, scene_DR.shape[1])) @ scene_DR.T
  query_QD, item_ND = view_ND().astype(np.float32), view_ND().astype(np.float32)
  relevance = Relevance([np.array([i]) for i in range(40)], [np.zeros(0, int)] * 40)
  validator = Validator(query_QD, item_ND, relevance, limit=0, seed=0)
  training = Training(query_type, query_QD, item_ND, np.arange(40))

  def fitted(off_words, folder):
    one = Material(training, None, None, validator, validator, {"train": "x"}, made, off_words)
    return plan.candidates(config, one, tmp_path / folder)

  found = fitted(material.off_words(config, data), "told")
  assert list(found)[:2] == ["plain", "off_words"]
  assert found["off_words"].precision_Q.mean() > 0.95 > 0.5 > found["plain"].precision_Q.mean()
  assert choose(query_type, found, validator)["name"] == "off_words"
  chosen = choose(query_type, found, validator, "plain")  # what is told serves, though validation be against it
  assert chosen["name"] == "plain" and chosen["best"] != "plain"
  assert f"{query_type} queries: plain serves, as config.aspects.ignore says" in chosen["account"]
  config.aspects.ignore = ()
  assert material.off_words(config, data) is None
  untold = fitted(None, "untold")
  assert list(untold) == [name for name in found if name != "off_words"]
  told_file, untold_file = (tmp_path / name / "plain" / plan.MADE_FROM for name in ("told", "untold"))
  assert told_file.read_text() == untold_file.read_text()


def test_other_phrases_or_another_encoder_are_another_candidate(tmp_path):
  config, data = told(tmp_path)
  settings = material.off_words(config, data).settings
  assert settings == {"ignore": {"scene": SCENES}, "encoder": ["toy_clip", None]}
  (tmp_path / "aspects.json").write_text(json.dumps({"scene": SCENES[1:]}))
  assert material.off_words(config, data).settings["ignore"] == {"scene": SCENES[1:]}
  plan.claimed(tmp_path / "off_words", {"settings": settings})
  with pytest.raises(ValueError, match="was made with other inputs or settings: settings.ignore.scene was"):
    plan.claimed(tmp_path / "off_words", {"settings": material.off_words(config, data).settings})


@pytest.mark.parametrize(
  ("encoder", "width", "aspects", "message"),
  [
    (None, 128, {}, "those in ROOT do not name it; give --config.encoder.name=NAME$"),
    (("gone/away/far", None), 128, {}, "the encoder of the features, gone/away/far, which cannot be loaded"),
    (
      ("toy_clip", "0" * 32),
      128,
      {},
      "the retrieval set is of the encoder toy_clip@0{32}, the encoder of the words of toy",
    ),
    (("toy_clip", None), 64, {}, "the encoder toy_clip is 128 wide, the features 64"),
    (
      ("toy_clip", None),
      128,
      {"ignore": ("scenes",)},
      "ignore names 'scenes', which .*aspects.json lacks; use scene, ",
    ),
    (("toy_clip", None), 128, {"file": "", "ignore": ("tint",)}, "'tint', which the package's own file lacks; use "),
  ],
)
def test_aspects_that_cannot_be_ignored_are_told_in_a_line(tmp_path, encoder, width, aspects, message):
  config, data = told(tmp_path, encoder, width, **aspects)
  config.data.root = "ROOT"
  steps = (lambda: check.config(config, 1), lambda: material.off_words(config, data).fit())
  with pytest.raises(ValueError, match=message) as error:
    [step() for step in steps]
  assert "\n" not in str(error.value)
