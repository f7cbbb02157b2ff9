import io

import numpy as np
import pytest
from PIL import Image

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.pictures import decode
from qat_jax.datasets.toybox import captions as toybox_captions
from qat_jax.datasets.toybox import render as toybox_render
from qat_jax.datasets.toybox import source as toybox
from qat_jax.datasets.toybox.objects import ATTRIBUTES, families

WORD_VALUES: dict[str, set[str]] = {}
for value, phrases in toybox_captions.WORDS.items():
  for phrase in phrases:
    WORD_VALUES.setdefault(phrase, set()).add(value)


def named_values(caption):
  """Returns the values that a caption names, longest words first, so that "on the left" is one word."""
  rest, found = f" {caption.replace(',', ' ')} ", []
  for phrase in sorted(WORD_VALUES, key=len, reverse=True):
    while f" {phrase} " in rest:
      rest = rest.replace(f" {phrase} ", "  ", 1)
      found.append(WORD_VALUES[phrase])
  return found


def test_members_of_a_family_differ_in_exactly_one_attribute():
  for members in families()[:200]:
    varied = [name for name in ATTRIBUTES if len({getattr(toy, name) for toy in members}) > 1]
    assert len(varied) == 1
    assert len({getattr(toy, varied[0]) for toy in members}) == len(members) == 4


def test_no_two_toys_look_the_same():
  toys = [toy for members in families() for toy in members]
  assert len({tuple(toy.attributes().values()) for toy in toys}) == len(toys)


def test_a_view_is_the_same_every_time_and_no_two_views_are_the_same():
  toy = families()[3][1]
  first, again, other = (np.asarray(toybox_render.render(toy, view)) for view in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  assert first.shape == (64, 64, 3)
  assert np.abs(first.astype(int) - other).mean() > 5


def test_the_main_shape_has_its_colour_in_the_picture():
  differences = []
  for members in families()[:150]:
    toy = members[0]
    if toy.texture == "plain" and toy.colour in ("red", "blue"):
      pixels = np.mean([np.asarray(toybox_render.render(toy, view), float) for view in range(6)], axis=0)
      red, _, blue = pixels[22:42, 22:42].mean(axis=(0, 1)) - pixels[:8].mean(axis=(0, 1))
      differences.append(red - blue if toy.colour == "red" else blue - red)
  assert len(differences) >= 4
  assert np.mean(differences) > 20


@pytest.mark.parametrize("describe", [toybox_captions.detailed, toybox_captions.coarse])
def test_captions_say_only_what_is_true(describe):
  for members in families()[:60]:
    for toy in members:
      for view in range(3):
        values = set(toy.attributes().values())
        caption = describe(toy, view)
        named = named_values(caption)
        assert named, caption
        assert all(meanings & values for meanings in named), (caption, toy)


def test_captions_say_of_the_scene_what_is_behind_the_toy():
  rim_of, seen = {}, 0
  for number, members in enumerate(families()[:300]):
    toy = members[0]
    said = {toybox_captions.detailed(toy, number)} | {toybox_captions.coarse(toy, word, number) for word in range(3)}
    pixels = np.asarray(toybox_render.render(toy, number), float)
    rim = np.concatenate([pixels[:5].reshape(-1, 3), pixels[-5:].reshape(-1, 3)])
    edges = np.abs(np.diff(pixels[:5], axis=1)).mean()
    words = {word for caption in said for word in caption.replace(",", " ").split()}
    assert len(words & set(toybox_captions.LIGHTS)) < 2  # one ground, whatever the words of the toy
    seen += bool(words & set(toybox_captions.LIGHTS))
    for word in words:
      rim_of.setdefault(word, []).append([rim.mean(), *(rim.mean(axis=0) - rim.mean()), edges])
  mean = {word: np.mean(rows, axis=0) for word, rows in rim_of.items()}
  assert seen > 200
  assert mean["shady"][0] + 25 < mean["misty"][0] < mean["sunny"][0] - 15
  for channel, (less, more) in enumerate(zip(*toybox_captions.TINTS, strict=True), start=1):
    assert mean[less][channel] + 15 < mean[more][channel]
  assert mean["alone"][4] < mean["among"][4]


def test_detailed_captions_name_more_than_coarse_ones_and_vary():
  toys = [members[0] for members in families()[:200]]
  counts = [
    [len(named_values(describe(toy, 0))) for toy in toys]
    for describe in (toybox_captions.detailed, toybox_captions.coarse)
  ]
  assert np.mean(counts[0]) > 5
  assert np.mean(counts[1]) < 4
  assert len({toybox_captions.detailed(toys[0], view) for view in range(20)}) > 15


def test_coarse_captions_never_use_the_third_word_of_a_value_and_the_others_seldom_the_second():
  words_of = lambda number: {word for words in toybox_captions.WORDS.values() for word in words[number].split()}
  plain, other, rare = (words_of(number) for number in range(3))
  captions = [toybox_captions.coarse(members[0], view) for members in families()[:400] for view in range(5)]
  used = [word for caption in captions for word in caption.replace(",", " ").split()]
  assert not set(used) & (rare - plain - other - {"it"})
  seconds, firsts = ([word for word in used if word in words] for words in (other - plain, plain - other))
  assert 0.2 < len(seconds) / (len(seconds) + len(firsts)) < 0.4
  assert {"red", "circle", "striped", "above"} <= set(firsts)
  detailed = {word for members in families()[:400] for word in toybox_captions.detailed(members[0], 0).split()}
  assert {"scarlet", "navy", "cardioid"} <= detailed


def test_the_vocabulary_holds_every_word_of_every_caption():
  words = set(toybox_captions.vocabulary())
  for members in families()[:200]:
    for describe in (toybox_captions.detailed, toybox_captions.coarse):
      assert set(describe(members[0], 5).replace(",", " ").split()) <= words


def test_splits_are_disjoint_by_family():
  families_of = {}
  for part in ("train", "val", "test", "pretrain"):
    places = [part] if "train" in part else [f"{part}_{kind}" for kind in ("gallery", "text_queries", "image_queries")]
    families_of[part] = {record["family"] for place in places for record in toybox.source(place, "tiny")}
  for part, there in families_of.items():
    for other, theirs in families_of.items():
      assert part == other or (there and not there & theirs)


def test_the_encoder_is_trained_on_families_that_the_demo_does_not_hold():
  ranges = {name: toybox.CONFIGS[name].parts() for name in ("default", "pretrain")}
  demo = {number for numbers in ranges["default"].values() for number in numbers}
  assert not demo & set(ranges["pretrain"]["pretrain"])


def test_every_query_has_other_views_of_its_instance_in_the_gallery_and_is_not_there_itself():
  gallery = toybox.source("test_gallery", "tiny")
  records = [gallery[i] for i in range(len(gallery))]
  instances, ids = [r["instance"] for r in records], {r["id"] for r in records}
  assert len(ids) == len(records) == 5 * 4 * 3
  for kind in ("text", "image"):
    queries = toybox.source(f"test_{kind}_queries", "tiny")
    assert len(queries) == 10
    for i in range(len(queries)):
      assert instances.count(queries[i]["instance"]) == 3
      assert queries[i]["id"] not in ids


def test_a_record_is_a_view_of_a_toy():
  toy = families()[toybox.CONFIGS["tiny"].parts()["train"][0]][0]
  source = toybox.source("train", "tiny")
  record = source[1]
  assert (len(source), record["id"], record["instance"]) == (6 * 4 * 3, f"{toy.name}_1", toy.name)
  assert record["caption"] == toybox_captions.detailed(toy, 1)
  assert record["image"] == toybox_render.as_jpeg(toybox_render.drawn(record["id"])) == source[1]["image"]
  assert toybox.source("pretrain", "tiny")[0]["caption"] != toybox_captions.detailed(families()[15][0], 0)
  with pytest.raises(IndexError, match="position 72 asked of a source of 72"):
    source[72]


def test_unknown_configs_and_splits_are_named():
  with pytest.raises(ValueError, match=r"no config 'small'; there are default, drawn0, .*, pretrain, tiny"):
    toybox.source("train", "small")
  with pytest.raises(ValueError, match=r"no split 'dev'; there are .*val_gallery"):
    toybox.source("dev", "tiny")
  with pytest.raises(ValueError, match="asks for 12001 families, but the toybox has 12000"):
    toybox.Config(first_family=12_000, train=1).parts()


def test_a_broken_image_is_reported_with_its_id():
  buffer = io.BytesIO()
  Image.new("RGB", (64, 64)).save(buffer, "PNG")
  assert decode({"id": "a", "image": buffer.getvalue()}).mode == "RGB"
  for broken in (buffer.getvalue()[:60], b"no image", b""):
    with pytest.raises(UnreadableImage, match="'b' cannot be read") as caught:
      decode({"id": "b", "image": broken})
    assert caught.value.id == "b"
    assert caught.value.reason
