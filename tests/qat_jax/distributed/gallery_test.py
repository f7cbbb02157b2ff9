"""A gallery whose shards lie on a cluster gives what it gives in one process."""

import os
import shutil

import jax
import numpy as np
import pytest

import qat_jax
from qat_jax.adapter import Adapter
from qat_jax.distributed import Gallery
from qat_jax.features.store import write_features
from qat_jax.search.exact import DEEP
from qat_jax.types import Adaptation
from tests.vectors import features

ROWS, WIDTH = (700, 1, 450, 349), 8
NUMBERS = 4 * (WIDTH + 1 + 2 * 2 * WIDTH)  # bytes of an adaptation: query, gate, two factors of rank 2


@pytest.fixture(scope="module")
def items():
  """1,500 unit items, of which some are the same in several shards."""
  item_ND = features(sum(ROWS), WIDTH, 0)
  item_ND[[20, 700, 900, 1400]] = item_ND[20]
  return item_ND


@pytest.fixture(scope="module")
def folders(items, tmp_path_factory):
  root, found, first = tmp_path_factory.mktemp("shards"), [], 0
  for number, rows in enumerate(ROWS):
    names = [f"item{i}" for i in range(first, first + rows)]
    write_features(root / str(number), {"img": items[first : first + rows]}, {"id": names}, {"encoder": "e"})
    found.append(root / str(number))
    first += rows
  return found


@pytest.fixture(scope="module")
def trained(head, tmp_path_factory):
  folder = tmp_path_factory.mktemp("adapter")
  adapter = Adapter(WIDTH, {"text": head("adaptive", hidden=8, rank=2, token_hidden=8)})
  adapter.save(folder)
  return adapter, folder


@pytest.fixture(scope="module")
def gallery(cluster, folders, trained):
  with Gallery(folders, adapter=trained[1]) as found:
    yield found


@pytest.fixture(scope="module")
def adaptation(items):
  """150 queries with maps of rank 3; the last ones are those items that occur several times."""
  rng, keys = np.random.default_rng(1), jax.random.split(jax.random.key(0), 3)
  query_QD = np.concatenate([features(140, WIDTH, rng), np.repeat(items[20:21], 10, axis=0)])
  normal = lambda key, *shape: 0.3 * jax.random.normal(key, shape)
  return Adaptation(
    query_QD, 1 + normal(keys[0], 150, WIDTH), normal(keys[1], 150, WIDTH, 3), normal(keys[2], 150, WIDTH, 3)
  )


def check_same(found, wanted):
  np.testing.assert_array_equal(found.ids, wanted.ids)
  np.testing.assert_array_equal(found.scores, wanted.scores)


@pytest.mark.parametrize("k", [1, 20, int(DEEP * sum(ROWS)) + 1, 2 * sum(ROWS)])
def test_the_best_of_all_shards_are_those_of_one_gallery(gallery, adaptation, items, k):
  check_same(qat_jax.rank(adaptation, gallery, k), qat_jax.rank(adaptation, items, k))


def test_it_is_a_gallery_like_any_other(gallery, folders, items):
  assert (len(gallery), gallery.width, gallery.dtype, gallery.space) == (1500, WIDTH, np.float32, "frozen")
  assert isinstance(gallery, qat_jax.Gallery) and gallery.encoder == ("e", None)
  assert gallery.ids.tolist() == [f"item{i}" for i in range(1500)]
  for rows in (slice(690, 720), np.array([1499, 3, 700, 3])):
    np.testing.assert_array_equal(gallery[rows], items[rows])
  with pytest.raises(IndexError, match="−1 is padding"):
    gallery[np.array([-1])]


def test_masks_and_shortlists_are_positions_in_the_whole(gallery, adaptation, items):
  rng = np.random.default_rng(2)
  exclude_QE = rng.integers(-1, 1500, (150, 30))
  lists_QA = rng.integers(-1, 1500, (150, 40))
  for masks in (
    {"exclude": exclude_QE},
    {"allowed": rng.random(1500) < 0.3, "exclude": exclude_QE},
    {"allowed": np.array([5, 1400, 900, 702, 20])},
    {"allowed": lists_QA, "exclude": exclude_QE},
  ):
    check_same(qat_jax.rank(adaptation, gallery, 15, **masks), qat_jax.rank(adaptation, items, 15, **masks))
  check_same(qat_jax.rerank(adaptation, gallery, lists_QA), qat_jax.rerank(adaptation, items, lists_QA))
  with pytest.raises(ValueError, match="this one lies on a cluster"):
    qat_jax.rank(adaptation, gallery, 3, chunk_rows=7)


def test_shards_adapt_queries_that_travel_alone(gallery, trained, items):
  query_QD, before = features(100, WIDTH, 3), gallery.traffic
  found = gallery.search(query_QD, 30)
  for block in (slice(0, 64), slice(64, 100)):
    wanted = qat_jax.rank(trained[0](query_QD[block]), items, 30)
    check_same(found.replace(ids=found.ids[block], scores=found.scores[block]), wanted)
  after = gallery.traffic
  asked = after.asked - before.asked
  assert asked == 100 * len(ROWS)
  assert (after.sent - before.sent + after.received - before.received) / asked <= 4096 + 12 * 30
  with pytest.raises(ValueError, match="query 1 is NaN, infinite or zero"):
    gallery.search(np.stack([query_QD[0], 0 * query_QD[0]]))


def bytes_sent(gallery, adaptation, k):
  """What a ranking sends and receives for each query and shard, and the ranking."""
  before = gallery.traffic
  found = qat_jax.rank(adaptation, gallery, k)
  after = gallery.traffic
  asked = after.asked - before.asked
  return (after.sent - before.sent + after.received - before.received) / asked, found


def test_rank_sends_frozen_queries_where_shards_make_the_same_of_them(gallery, trained, items):
  adaptation = trained[0](features(64, WIDTH, 4))
  whole = adaptation.replace(frozen=None)
  light, found = bytes_sent(gallery, adaptation, 30)
  heavy, wanted = bytes_sent(gallery, whole, 30)
  check_same(found, wanted)
  check_same(found, qat_jax.rank(adaptation, items, 30))
  assert heavy - light == pytest.approx(NUMBERS - 4 * WIDTH, abs=20)


@pytest.mark.parametrize("name", ["query", "gate", "left", "right", "frozen"])
def test_an_adaptation_that_was_changed_travels_itself(gallery, trained, items, name):
  adaptation = trained[0](features(64, WIDTH, 5))
  changed = np.array(getattr(adaptation, name))
  changed[7, -1] += 0.3
  adaptation = adaptation.replace(**{name: changed})
  sent, found = bytes_sent(gallery, adaptation, 30)
  assert sent > NUMBERS
  check_same(found, qat_jax.rank(adaptation, items, 30))


def test_what_was_found_travels_along(gallery, adaptation, monkeypatch):
  floors, request = [], Gallery._request
  monkeypatch.setattr(
    Gallery, "_request", lambda self, *args: floors.append(args[3][args[-1]].threshold) or request(self, *args)
  )
  qat_jax.rank(adaptation, gallery, 1)
  assert sum(np.isfinite(floor_Q).all() for floor_Q in floors) >= len(floors) - 2 * len(ROWS)


def test_a_lost_actor_is_asked_again(gallery, adaptation, items, ray):
  wanted = qat_jax.rank(adaptation, items, 20)
  for member in (gallery._crew._members[0][0], gallery._crew._members[2][0]):
    ray.kill(member.actor, no_restart=False)
  check_same(qat_jax.rank(adaptation, gallery, 20), wanted)


def test_a_shard_that_cannot_be_asked_is_named_or_left_out(cluster, adaptation, items, folders, tmp_path):
  copies = [shutil.copytree(folder, tmp_path / folder.name) for folder in folders[:2]]
  with Gallery(copies, replicas=2) as gallery:
    os.remove(copies[0] / "img_emb/img_emb_0000.npy")
    with pytest.raises(ConnectionError, match=rf"shard {copies[0]} \(rows 0 to 699\) cannot be asked: .*img_emb"):
      qat_jax.rank(adaptation, gallery, 20)
    gallery.partial = True
    found = qat_jax.rank(adaptation, gallery, 20)
  assert found.rows == ((700, 701),)
  check_same(found, qat_jax.rank(adaptation, items[:701], 20, allowed=np.array([700])))


def test_shards_that_do_not_fit_are_named(cluster, folders, tmp_path):
  with pytest.raises(ValueError, match=r"the id 'item0' occurs more than once in .*/0 \(700 such ids in all\)"):
    Gallery([folders[0], folders[0]])
  with pytest.raises(OSError, match=rf"shard {tmp_path}/none cannot be asked: no folder .*none.*\(on the node"):
    Gallery([tmp_path / "none"], patience=30)
  with pytest.raises(ValueError, match="give at least one of each"):
    Gallery([])
