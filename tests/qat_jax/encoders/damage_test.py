"""Checkpoints that are not what they should be: one line that says what was found, what was wanted, what to do."""

import json
import pathlib
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from qat_jax.encoders import load_encoder
from qat_jax.encoders.encoder import TOY_CLIP
from qat_jax.encoders.families import read_encoder_config

DATA = pathlib.Path(__file__).parents[2] / "data/reference_encoders"


@pytest.fixture
def folder(tmp_path):
  return pathlib.Path(shutil.copytree(TOY_CLIP, tmp_path / "clip"))


def rewritten(folder, change):
  """Writes the weights again after `change` has seen their dict."""
  tensors = load_file(folder / "model.safetensors")
  change(tensors)
  save_file(tensors, folder / "model.safetensors")
  return str(folder)


def without(*names):
  return lambda folder: [(folder / name).unlink() for name in names]


def written(name, text):
  return lambda folder: (folder / name).write_text(text)


def with_settings(name, part="", **values):
  """Returns what changes settings of a JSON file, or of a part of it."""

  def change(folder):
    about = json.loads((folder / name).read_text())
    (about[part] if part else about).update(values)
    (folder / name).write_text(json.dumps(about))

  return change


def with_tensors(change):
  return lambda folder: rewritten(folder, change)


def with_bytes(change):
  """Returns what writes the bytes of the weights anew."""
  path = lambda folder: folder / "model.safetensors"
  return lambda folder: path(folder).write_bytes(change(path(folder).read_bytes()))


def of_type(kind):
  numbers = np.dtype(getattr(ml_dtypes, kind, kind))
  return with_tensors(lambda tensors: tensors.update({name: x.astype(numbers) for name, x in tensors.items()}))


def with_index(text):
  """Returns what puts an index of shards in the place of the weights."""
  return lambda folder: [without("model.safetensors")(folder), written("model.safetensors.index.json", text)(folder)]


def without_padding(folder):
  without("tokenizer_config.json", "special_tokens_map.json")(folder)
  path = folder / "tokenizer.json"
  path.write_text(path.read_text().replace("<|endoftext|>", "<|fin|>"))


KEY = "vision_model.encoder.layers.1.self_attn.k_proj.weight"
PICTURES, SIZE = "preprocessor_config.json", (TOY_CLIP / "model.safetensors").stat().st_size
DAMAGES = [
  (written("config.json", '{"model_type": "bert"}'), r"is a 'bert'; wanted one of clip, metaclip_2, siglip"),
  (
    written("config.json", '{"model_type": "chinese_clip"}'),
    r"is a 'chinese_clip' \(its text tower is a BERT\); wanted one of clip",
  ),
  *[(written("config.json", text), "config.json is no JSON object") for text in ("", "[]", "{")],
  (with_settings("config.json", "vision_config", hidden_act="tanh"), r"hidden_act is 'tanh'; wanted one of quick_gelu"),
  (
    with_settings("config.json", "vision_config", num_hidden_layers=2),
    r"holds vision_model.encoder.layers.2.* and 13 more, of which .*has no use",
  ),
  *[(without(file), rf"clip' lacks {file}") for file in ("config.json", PICTURES, "model.safetensors")],
  (
    with_tensors(lambda tensors: tensors.pop("text_projection.weight")),
    r"model.safetensors lacks text_projection.weight; give a whole checkpoint",
  ),
  (
    with_tensors(lambda tensors: tensors.update({KEY: np.zeros((128, 64), np.float32)})),
    rf"{KEY} has the shape \(128, 64\), wanted \(128, 128\) by config.json",
  ),
  *[
    (of_type(kind), r"model.safetensors: \S+ is of the type (F8|I8|U8|BOOL|I64)\S*; wanted floats")
    for kind in ("float8_e4m3fn", "float8_e5m2", "int8", "uint8", "bool", "int64")
  ],
  (with_bytes(lambda data: data[:-1000]), rf"is damaged: .*it has {SIZE} bytes, on disk {SIZE - 1000}"),
  (
    with_bytes(lambda data: (1 << 40).to_bytes(8, "little") + data[8:]),
    rf"header would have {1 << 40} bytes, the file has {SIZE}.*again",
  ),
  *[
    (with_index(text), r"model.safetensors.index.json (is no JSON object|has no weight_map)")
    for text in ("{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": ["a"]}', '{"weight_map": {"a": 1}}')
  ],
  (
    without("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"),
    r"clip' has no tokenizer that can be read .*wanted tokenizer.json",
  ),
  (with_settings(PICTURES, do_normalize=False), r"says do_normalize is false; only pictures that are"),
  (with_settings(PICTURES, do_center_crop=False), r"do_center_crop False; wanted a short side and a crop, or neither"),
  *[
    (with_settings(PICTURES, **settings), rf"{PICTURES} .*{reason}")
    for settings, reason in (
      ({"resample": "sharp"}, "'sharp' is not a valid Resampling"),
      ({"image_mean": ["a"] * 3}, "could not convert string to float: 'a'"),
      ({"image_std": [0, 0, 0]}, r"image_std is \[0, 0, 0\]; wanted 3 finite numbers above 0"),
      ({"rescale_factor": "1/255"}, "could not convert"),
      ({"crop_size": 0}, "0 is no side; wanted whole pixels"),
      ({"crop_size": 32}, r"pictures get \(32, 32\) pixels, and the tower in config.json takes \(60, 60\)"),
      ({"size": None, "crop_size": None}, r"pictures get \(224, 224\) pixels"),
    )
  ],
  *[
    (with_settings("config.json", part, **settings), rf"config.json has settings that are not understood \(.*{reason}")
    for part, settings, reason in (
      ("vision_config", {"hidden_size": "128"}, "width of a tower .Layers. is '128'; wanted a whole number"),
      ("vision_config", {"num_attention_heads": 5}, "width of a tower is 128, no multiple of 5 heads"),
      ("vision_config", {"image_size": [60, 60]}, "unsupported operand"),
      ("vision_config", {"patch_size": 0}, "by zero"),
      ("text_config", {"layer_norm_eps": None}, "epsilon of a tower .Layers. is None; wanted a number"),
      ("text_config", {"eos_token_id": [903]}, r"end of a tower .Text. is \[903\]"),
      ("text_config", {"hidden_act": ["gelu"]}, r"hidden_act is \['gelu'\]; wanted one of quick_gelu"),
      ("", {"text_config": [1]}, "must be a mapping"),
    )
  ],
  (with_settings("config.json", "text_config", eos_token_id=5), r"ends a text with the id 903, wanted the end token 5"),
  (with_settings("tokenizer.json", post_processor=None), r"tokenizer of '.*clip' ends a text with the id"),
  (
    lambda folder: [without("tokenizer.json")(folder), written("merges.txt", "")(folder)],
    r"merges.txt is empty; fetch it again",
  ),
  (written("tokenizer.json", "{"), r"has no tokenizer that can be read \(tokenizer.json: EOF"),
  (written("adapter_config.json", "{}"), r"adapter_config.json changes the weights beside it; merge them"),
  (
    with_tensors(lambda tensors: tensors.update({KEY: np.full((128, 128), np.nan, np.float32)})),
    rf"model.safetensors: {KEY} has NaN or infinite numbers",
  ),
  (
    with_tensors(lambda tensors: tensors.update({f"old.{KEY}": tensors.pop(KEY)})),
    rf"lacks {KEY} and holds old.{KEY} instead; give a whole checkpoint",
  ),
  *[
    (with_settings(PICTURES, **settings), PICTURES)
    for settings in (
      {"size": {"longest_edge": 64}},
      {"crop_size": "large"},
      {"crop_size": {"height": 60}},
      {"image_mean": [0.5]},
    )
  ],
  (
    with_settings("tokenizer_config.json", pad_token="<nobody>"),
    r"tokenizer of '.*clip' gives the id \d+, and its text tower knows",
  ),
  (without_padding, r"clip' names no token that pads texts; write it as pad_token"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_what_is_wrong_with_a_folder_is_named(folder, damage, message):
  damage(folder)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    load_encoder(str(folder))


def test_a_name_of_nothing_says_what_to_do():
  with pytest.raises(FileNotFoundError, match="no folder '/nowhere/clip'"):
    load_encoder("/nowhere/clip")
  with pytest.raises(FileNotFoundError, match=r"'someone/no-such-clip' is no folder, .*local folder"):
    load_encoder("someone/no-such-clip")


def test_a_folder_has_no_revisions(folder):
  with pytest.raises(ValueError, match=r"revision is 'main', but .*clip' is a folder.*leave revision out"):
    load_encoder(str(folder), revision="main")


@pytest.mark.parametrize(
  ("folder", "part", "settings", "reason"),
  [
    ("open_clip", "vision_cfg", {"attentional_pool": True}, r"attentional_pool True.*pools as CoCa does"),
    ("open_clip", "vision_cfg", {"timm_model_name": "eva02_base_patch16_clip_224"}, r"plain ViTs and PE-Core.*not EVA"),
    ("open_clip", "vision_cfg", {"layers": [3, 4, 6, 3]}, r"layers, image and patch of \[\[3, 4, 6, 3\].*a square ViT"),
    ("open_clip", "vision_cfg", {"pool_type": "none"}, r"vision_cfg.pool_type is 'none'; wanted one of tok, avg"),
    ("open_clip", "text_cfg", {"hf_model_name": "roberta-base"}, r"text_cfg has hf_model_name.*such as RoBERTa"),
    ("open_clip", "text_cfg", {"tokenizer_kwargs": {"strip_sep_token": True}}, r"'strip_sep_token' is not known"),
    ("open_clip", "text_cfg", {"act_kwargs": {"approximate": "tanh"}}, r"wanted approximate tanh, without quick_gelu"),
    ("open_clip_siglip", "vision_cfg", {"timm_pool": "abs_attn"}, r"timm_pool is 'abs_attn'; wanted one of token"),
    ("open_clip_siglip", "text_cfg", {"tokenizer_kwargs": {"clean": "all"}}, r"clean is 'all'; wanted one of"),
  ],
)
def test_what_open_clip_has_and_is_not_known_is_named(tmp_path, folder, part, settings, reason):
  copy = pathlib.Path(shutil.copytree(DATA / folder, tmp_path / "it"))
  path = copy / "open_clip_config.json"
  config = json.loads(path.read_text())
  config["model_cfg"][part] |= settings
  path.write_text(json.dumps(config))
  with pytest.raises(ValueError, match=reason):
    load_encoder(str(copy))


def test_open_clips_weights_are_asked_for_by_name(tmp_path):
  copy = pathlib.Path(shutil.copytree(DATA / "open_clip", tmp_path / "it"))
  (copy / "open_clip_model.safetensors").unlink()
  with pytest.raises(FileNotFoundError, match=r"lacks open_clip_model.safetensors.*pytorch_model.bin\) are not read"):
    load_encoder(str(copy))


def test_of_both_formats_that_is_read_whose_weights_are_there(tmp_path):
  copy = pathlib.Path(shutil.copytree(DATA / "open_clip", tmp_path / "it"))
  (copy / "config.json").write_text((DATA / "clip/config.json").read_text())
  assert read_encoder_config(copy).model_type == "open_clip"
  shutil.copy(DATA / "clip/model.safetensors", copy)
  assert read_encoder_config(copy).model_type == "clip"
  (copy / "config.json").write_text(json.dumps({"architecture": "vit_pe_core_large_patch14_336"}))
  assert read_encoder_config(copy).model_type == "open_clip"
  (copy / "open_clip_config.json").unlink()
  with pytest.raises(ValueError, match=r"timm's 'vit_pe_core_large_patch14_336': it has no text tower"):
    read_encoder_config(copy)


def test_position_ids_of_old_checkpoints_are_passed_over(folder):
  add = lambda tensors: tensors.update({"text_model.embeddings.position_ids": np.arange(32)[None]})
  assert load_encoder(rewritten(folder, add)).width == 128


FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def in_shards(folder, within="", change=lambda tensors, shards: None):
  """Puts two shards, which `change` may see, and their index in the place of the weights."""
  tensors = load_file(folder / "model.safetensors")
  (folder / "model.safetensors").unlink()
  names = sorted(tensors)
  shards = {file: {name: tensors[name] for name in part} for file, part in ((FIRST, names[::2]), (SECOND, names[1::2]))}
  index = {"weight_map": {name: within + file for file, part in shards.items() for name in part}}
  change(tensors, shards)
  (folder / within).mkdir(exist_ok=True)
  for file, part in shards.items():
    save_file(part, folder / within / file)
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("within", ["", "weights/"])
def test_shards_are_read_and_a_missing_one_is_named(folder, within):
  whole = load_encoder(str(folder)).texts(["a red star"])
  in_shards(folder, within)
  np.testing.assert_array_equal(load_encoder(str(folder)).texts(["a red star"]), whole)
  (folder / within / SECOND).unlink()
  with pytest.raises(FileNotFoundError, match=rf"names {within}{SECOND}, not in the folder"):
    load_encoder(str(folder))


def test_a_tensor_that_two_shards_hold_is_named(folder):
  in_shards(folder, change=lambda tensors, shards: shards[SECOND].update({KEY: tensors[KEY]} | shards[FIRST]))
  with pytest.raises(ValueError, match=rf"{FIRST} and \S+{SECOND} both hold .*remove the shards of another checkpoint"):
    load_encoder(str(folder))


@pytest.mark.parametrize("before", ["model.", "module.", "base_model.model."])
def test_what_stands_before_every_tensor_of_a_larger_models_part_is_passed_over(folder, before):
  expected = load_encoder(str(folder)).texts(["a red star"])

  def larger(tensors):
    for name in list(tensors):
      tensors[before + name] = tensors.pop(name)
    tensors["classifier.weight"] = np.zeros((3, 128), np.float32)

  rewritten(folder, larger)
  np.testing.assert_array_equal(load_encoder(str(folder)).texts(["a red star"]), expected)


@pytest.mark.parametrize("file", ["config.json", PICTURES, "tokenizer.json", "tokenizer_config.json"])
def test_a_byte_order_mark_is_passed_over(folder, file):
  expected = load_encoder(str(folder)).texts(["a red star"])
  (folder / file).write_bytes(b"\xef\xbb\xbf" + (folder / file).read_bytes())
  np.testing.assert_array_equal(load_encoder(str(folder)).texts(["a red star"]), expected)


def test_vocabulary_and_merges_alone_make_the_same_tokenizer(folder):
  whole = load_encoder(str(folder)).texts(["a red star", "größer"])
  (folder / "tokenizer.json").unlink()
  np.testing.assert_array_equal(load_encoder(str(folder)).texts(["a red star", "größer"]), whole)


@pytest.mark.parametrize(
  ("family", "settings"),
  [
    ("clip", {"size": 32, "crop_size": 32}),
    ("clip", {"size": {"shortest_edge": 32.0}, "crop_size": [32, 32], "resample": "bicubic"}),
    ("siglip", {"size": 30, "image_mean": 0.5, "image_std": 0.5}),
    ("siglip", {"size": [30, 30], "resample": "PIL.Image.BICUBIC", "do_center_crop": True, "crop_size": 30}),
    ("siglip2_gemma", {"size": 32, "resample": "BILINEAR"}),
    ("dinov3", {"size": 32}),
  ],
)
def test_settings_in_other_words_mean_the_same(tmp_path, family, settings):
  folder = pathlib.Path(shutil.copytree(DATA / family, tmp_path / "it"))
  before = load_encoder(str(folder))._pixels
  with_settings(PICTURES, **settings)(folder)
  assert load_encoder(str(folder))._pixels == before


def test_patches_of_another_size_than_the_towers_are_named(tmp_path):
  folder = pathlib.Path(shutil.copytree(DATA / "siglip2_naflex", tmp_path / "it"))
  with_settings(PICTURES, patch_size=16)(folder)
  with pytest.raises(ValueError, match=r"patches get \(16, 16\) pixels, and the tower in config.json takes \(8, 8\)"):
    load_encoder(str(folder))


def test_pictures_for_open_clip_have_the_size_of_its_tower(tmp_path):
  folder = pathlib.Path(shutil.copytree(DATA / "open_clip", tmp_path / "it"))
  with_settings("open_clip_config.json", "preprocess_cfg", size=64, mean=0.5)(folder)
  pixels = load_encoder(str(folder))._pixels
  assert (pixels.crop, pixels.mean) == ((30, 30), (0.5,) * 3)


@pytest.mark.parametrize(
  ("part", "settings", "reason"),
  [
    ("preprocess_cfg", {"mean": [0.5]}, r"mean is \[0.5\]; wanted 3 finite numbers"),
    ("preprocess_cfg", {"interpolation": "nearest"}, "interpolation 'nearest'"),
    ("model_cfg", {"embed_dim": "36"}, "projection of a tower .Vision. is '36'"),
    ("", {"preprocess_cfg": [1]}, "not a mapping"),
  ],
)
def test_odd_settings_of_open_clip_are_named_with_their_file(tmp_path, part, settings, reason):
  folder = pathlib.Path(shutil.copytree(DATA / "open_clip", tmp_path / "it"))
  with_settings("open_clip_config.json", part, **settings)(folder)
  with pytest.raises(ValueError, match=rf"open_clip_config.json has settings that are not understood \(.*{reason}"):
    load_encoder(str(folder))


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2_gemma", "dinov2"])
@pytest.mark.parametrize("other", ["nothing", "old settings"])
def test_the_processor_that_transformers_5_saves_is_read(tmp_path, family, other):
  folder = pathlib.Path(shutil.copytree(DATA / family, tmp_path / "it"))
  expected = load_encoder(str(folder))._pixels
  path = folder / "preprocessor_config.json"
  settings = json.loads(path.read_text())
  (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings | {"data_format": None}}))
  if other == "nothing":
    path.unlink()
  else:
    with_settings(PICTURES, image_mean=[0.1, 0.1, 0.1])(folder)
  assert load_encoder(str(folder))._pixels == expected


def test_a_processor_without_pictures_leaves_the_old_settings_in_force(folder):
  expected = load_encoder(str(folder))._pixels
  (folder / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
  assert load_encoder(str(folder))._pixels == expected


FAMILIES = ["clip", "clip_openclip", "siglip", "siglip2_gemma"]


@pytest.mark.parametrize("form", ["config", "config object", "map", "map object"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_padding_token_is_taken_wherever_it_is_named(tmp_path, family, form):
  folder = pathlib.Path(shutil.copytree(DATA / family, tmp_path / "it"))
  tokens = load_encoder(str(folder))._tokens
  token = tokens._tokenizer.convert_ids_to_tokens(9)  # any but the family's own
  assert tokens(["a red star"])[0][0, -1] != 9
  word = {"content": token, "special": True} if form.endswith("object") else token
  path = folder / "tokenizer_config.json"
  path.write_text(json.dumps({"pad_token": word} if form.startswith("config") else {"pad_token": None}))
  if form.startswith("map"):
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": word}))
  assert load_encoder(str(folder))._tokens(["a red star"])[0][0, -1] == 9


@pytest.mark.parametrize("form", ["tokenizer alone", "null"])
@pytest.mark.parametrize("family", FAMILIES)
def test_where_no_padding_token_is_named_the_familys_own_is_taken(tmp_path, family, form):
  folder = pathlib.Path(shutil.copytree(DATA / family, tmp_path / "it"))

  def read():
    encoder = load_encoder(str(folder))  # the tower of clip_openclip never looks at the padding, so any will do
    return encoder.texts(["a red star"]) if family == "clip_openclip" else encoder._tokens(["a red star"])[0]

  expected = read()
  (folder / "special_tokens_map.json").unlink(missing_ok=True)
  (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": None}))
  if form == "tokenizer alone":
    (folder / "tokenizer_config.json").unlink()
  np.testing.assert_array_equal(read(), expected)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
  "file",
  [
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "model.safetensors", "model.safetensors.index.json", "flax_model.msgpack", "shard"),
  ],
)
def test_a_pointer_of_git_lfs_is_named_as_one(folder, file):
  if file in ("model.safetensors.index.json", "flax_model.msgpack", "shard"):
    (folder / "model.safetensors").unlink()
  if file == "shard":
    file = "model-1.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": file}}))
  (folder / file).write_text(LFS)
  with pytest.raises(ValueError, match=rf"{file} is a pointer of Git LFS, not the file; fetch it with git lfs pull"):
    load_encoder(str(folder))


def test_a_pointer_in_a_file_that_is_not_used_stops_nothing(folder):
  for file in ("vocab.json", "flax_model.msgpack"):
    (folder / file).write_text(LFS)
  assert load_encoder(str(folder)).width == 128


@pytest.mark.parametrize(("kind", "error"), [("float64", 0), ("float16", 1e-3), ("bfloat16", 1e-2)])
def test_floats_of_other_widths_are_read(folder, kind, error):
  expected = load_encoder(str(folder)).texts(["a red star"])
  of_type(kind)(folder)
  np.testing.assert_allclose(load_encoder(str(folder)).texts(["a red star"]), expected, atol=error)
