import functools

import numpy as np
import pytest

import qat_jax
from qat_jax.search.indexes.faiss import FaissIndex
from tests import vectors

faiss = pytest.importorskip("faiss", reason="pip install 'qat-jax[faiss]'")

features = functools.partial(vectors.features, width=32)


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2], ids=["ip", "l2"])
@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "IVF16,Flat"])
def test_an_index_that_exists_gives_inner_products_whatever_it_computes(metric, factory):
  gallery_ND, query_QD = features(600), 3 * features(8, seed=1)
  own = faiss.index_factory(32, factory, metric)
  own.train(gallery_ND)
  own.add(gallery_ND)
  if factory.startswith("IVF"):
    own.nprobe = 16
  ranking = FaissIndex.connect(own).search(query_QD, 5)
  score_QN = query_QD @ gallery_ND.T
  np.testing.assert_allclose(ranking.scores, np.take_along_axis(score_QN, ranking.ids, 1), atol=1e-5)
  best_QK = np.argsort(-score_QN, axis=1)[:, :5]
  assert np.mean([len(set(a) & set(b)) / 5 for a, b in zip(ranking.ids, best_QK, strict=True)]) > 0.9


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF8,Flat"])
def test_vectors_are_fetched_from_whatever_keeps_them(factory, tmp_path):
  gallery_ND = features(400)
  index = FaissIndex.build(gallery_ND, factory)
  np.testing.assert_array_equal(index.fetch(np.array([7, 3])), gallery_ND[[7, 3]])


def test_codes_are_good_for_a_shortlist_but_not_for_its_reranking():
  index = FaissIndex.build(features(600), "IVF8,SQ8")
  assert (index.search(features(2, seed=1), 10).ids >= 0).any()
  with pytest.raises(ValueError, match="codes of 32 bytes instead of vectors; rerank with the gallery"):
    index.fetch([0, 1])
  with pytest.raises(ValueError, match="no vectors that can be read back"):
    FaissIndex.build(features(600), "PCA16,Flat").fetch([0])


def test_labels_without_a_map_to_vectors_are_told_apart():
  own = faiss.IndexIDMap(faiss.IndexFlatIP(32))
  own.add_with_ids(features(5), np.arange(100, 105))
  index = FaissIndex.connect(own)
  assert index.search(features(5)[2:3], 1).ids.tolist() == [[102]]
  with pytest.raises(ValueError, match="IDMap2"):
    index.fetch([102])
  with pytest.raises(ValueError, match="a label 102, .* connect without ids"):
    FaissIndex.connect(own, ids=list("abcde")).search(features(5)[2:3], 1)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16", "IVF4,Flat"])
def test_no_vector_is_read_of_a_label_that_is_not_there(factory):
  index = FaissIndex.build(features(200), factory)
  for label in (-1, -(2**40), 200, 2**40):
    with pytest.raises(KeyError, match="search again"):
      index.fetch([7, label])


def test_what_an_index_cannot_do_is_said_in_one_line(tmp_path):
  with pytest.raises(ValueError, match="FAISS refuses 'IVF64,Flat' for 5 items") as caught:
    FaissIndex.build(features(5), "IVF64,Flat")
  assert "\n" not in str(caught.value) and "/" not in str(caught.value)
  with pytest.raises(ValueError, match="FAISS refuses 'Nonsense'"):
    FaissIndex.build(features(5), "Nonsense")
  with pytest.raises(TypeError, match=r"give a faiss\.Index"):
    FaissIndex.connect(faiss.IndexBinaryFlat(32))
  with pytest.raises(ValueError, match="metric 23"):
    FaissIndex.connect(faiss.IndexFlat(32, faiss.METRIC_Jaccard))
  (tmp_path / "half.faiss").write_bytes(b"IxFI\x20\x00")
  with pytest.raises(ValueError, match="no whole FAISS index"):
    FaissIndex.connect(tmp_path / "half.faiss")
  with pytest.raises(FileNotFoundError, match="no FAISS index"):
    FaissIndex.connect(tmp_path / "none.faiss")


def test_vectors_that_are_not_unit_are_refused_until_one_says_so():
  own = faiss.IndexFlatIP(32)
  own.add(5 * features(20))
  with pytest.raises(ValueError, match="vectors of length 5"):
    FaissIndex.connect(own)
  np.testing.assert_allclose(FaissIndex.connect(own, unit=False).fetch([3]), features(20)[[3]], atol=1e-6)
  named = faiss.IndexIDMap2(faiss.IndexFlatIP(32))
  named.add_with_ids(5 * features(20), np.arange(100, 120))
  with pytest.raises(ValueError, match="vectors of length 5"):
    FaissIndex.connect(named)
  with pytest.raises(ValueError, match="compares distances"):
    FaissIndex.connect(faiss.IndexFlatL2(32), unit=False)


def test_a_selector_of_labels_is_passed_through():
  index = FaissIndex.build(features(50))
  some = faiss.SearchParameters(sel=faiss.IDSelectorBatch([3, 9, 30]))
  ranking = index.search(features(1, seed=1), 5, filter=some)
  assert set(ranking.ids[0]) == {3, 9, 30, -1}


def test_an_index_file_is_opened(tmp_path):
  own = faiss.IndexFlatIP(32)
  own.add(features(20))
  faiss.write_index(own, str(tmp_path / "own.faiss"))
  index = FaissIndex.connect(tmp_path / "own.faiss", ids=[f"n{i}" for i in range(20)])
  assert index.search(features(20)[4:5], 1).ids.tolist() == [["n4"]]


@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_a_label_may_be_any_number_of_64_bits_but_the_one_that_means_nothing(metric):
  gallery_ND, flat = features(40, width=16), {"ip": faiss.IndexFlatIP, "l2": faiss.IndexFlatL2}[metric](16)
  labels = np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 40)
  labels[:4] = -(2**63), 2**63 - 1, -2, 0
  index = faiss.IndexIDMap2(flat)
  index.add_with_ids(gallery_ND, labels)
  connected = qat_jax.FaissIndex.connect(index)
  ranking = connected.search(gallery_ND[:5], 41)
  np.testing.assert_array_equal(ranking.ids[:, 0], labels[:5])
  assert (ranking.ids[:, 40] == -1).all() and np.isneginf(ranking.scores[:, 40]).all()
  np.testing.assert_allclose(ranking.scores[:, :40], -np.sort(-gallery_ND[:5] @ gallery_ND.T, axis=1), atol=1e-5)
  np.testing.assert_array_equal(connected.fetch(labels), gallery_ND)
  again = qat_jax.rerank(qat_jax.plain(gallery_ND[:5]), connected, ranking, k=3)
  np.testing.assert_array_equal(again.ids, ranking.ids[:, :3])


def test_the_label_that_means_nothing_is_refused():
  index = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
  index.add_with_ids(features(3, width=16), np.array([-1, 0, 1]))
  with pytest.raises(ValueError, match="has the label −1, which stands for no item"):
    qat_jax.FaissIndex.connect(index)


def test_labels_below_zero_are_no_positions_of_ids_or_items():
  index = faiss.IndexIDMap2(faiss.IndexFlatIP(16))
  index.add_with_ids(features(3, width=16), np.array([-2, 0, 1]))
  with pytest.raises(ValueError, match="has a label -2, which is no position among 3 ids"):
    qat_jax.FaissIndex.connect(index, ids=["a", "b", "c"]).search(features(3, width=16), 3)
  for label in (-1, -2):
    with pytest.raises(KeyError, match=f"no id {label}"):
      qat_jax.FaissIndex.build(features(3)).fetch([label])


def partitioned(gallery_ND, labels=None, table=False):
  """Returns an IVF index without a map from labels to places, or with a hash table."""
  index = faiss.index_factory(gallery_ND.shape[1], "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
  index.train(gallery_ND)
  if table:
    index.set_direct_map_type(faiss.DirectMap.Hashtable)
  index.add_with_ids(gallery_ND, np.arange(len(gallery_ND)) if labels is None else labels)
  index.nprobe = 4
  return index


def idmap(gallery_ND, labels):
  index = faiss.IndexIDMap(faiss.IndexFlatIP(gallery_ND.shape[1]))
  index.add_with_ids(gallery_ND, labels)
  return index


@pytest.mark.parametrize("make", [partitioned, lambda gallery_ND: idmap(gallery_ND, np.arange(200))], ids=["ivf", "id"])
def test_lengths_are_looked_at_where_no_label_leads_to_its_vector(make):
  assert FaissIndex.connect(make(features(200))).search(features(1), 1).ids.tolist() == [[0]]
  with pytest.raises(ValueError, match="vectors of length 5"):
    FaissIndex.connect(make(5 * features(200)))


def test_labels_of_partitions_may_be_any_number_but_the_one_that_means_nothing():
  gallery_ND, labels = features(200), np.random.default_rng(1).integers(-(2**63), 2**63 - 1, 200)
  index = FaissIndex.connect(partitioned(gallery_ND, labels, table=True))
  np.testing.assert_array_equal(index.search(gallery_ND[:5], 1).ids[:, 0], labels[:5])
  np.testing.assert_array_equal(index.fetch(labels), gallery_ND)
  labels[3] = -1
  with pytest.raises(ValueError, match="label −1, which stands for no item"):
    FaissIndex.connect(partitioned(gallery_ND, labels))


@pytest.mark.parametrize("make", [partitioned, idmap])
def test_a_label_that_two_items_have_is_named(make):
  with pytest.raises(ValueError, match="has the label 199 twice; add each item under its own"):
    FaissIndex.connect(make(features(200), np.array([*range(199), 199])[[*range(198), 199, 199]]))


@pytest.mark.parametrize("factory", ["Flat", "IVF4,Flat", "IDMap2,Flat"])
def test_an_index_without_items_is_refused(factory):
  index = faiss.index_factory(32, factory, faiss.METRIC_INNER_PRODUCT)
  with pytest.raises(ValueError, match="the FAISS index holds no items.*; add some"):
    FaissIndex.connect(index)
  index.train(features(200))
  with pytest.raises(ValueError, match="the FAISS index holds no items; add some"):
    FaissIndex.connect(index)


@pytest.mark.parametrize("factory", ["LSH", "ITQ8,LSH"])
def test_distances_of_bits_are_no_scores(factory):
  index = faiss.index_factory(32, factory, faiss.METRIC_L2)
  index.train(features(200))
  index.add(features(200))
  with pytest.raises(ValueError, match="compares bits"):
    FaissIndex.connect(index)


def test_files_that_are_something_else_are_named_as_such(tmp_path):
  bits, pointer = faiss.IndexBinaryFlat(32), tmp_path / "pointer.faiss"
  faiss.write_index_binary(bits, str(tmp_path / "bits.faiss"))
  pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
  with pytest.raises(ValueError, match="bits.faiss is a FAISS index of bits; wanted one of floats"):
    FaissIndex.connect(tmp_path / "bits.faiss")
  with pytest.raises(ValueError, match="pointer.faiss is a pointer of Git LFS"):
    FaissIndex.connect(pointer)
