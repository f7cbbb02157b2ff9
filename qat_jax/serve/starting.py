"""A folder of pictures → a running search: its collection, what fills it, and the service that shows it.

All that is made lies in one folder, `.qat-jax` beside the pictures unless another is named. In it, a folder for each
encoder: the collection, and `learnt`, the run of the training program where there was one. `pictures` has what was
added by the API.
"""

import errno
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import tqdm

from qat_jax.adapter import Adapter, load
from qat_jax.datasets.splits import kind_of, open_source
from qat_jax.encoders import load_encoder
from qat_jax.keeping import KeptMarks
from qat_jax.models.head import Head
from qat_jax.serve import places
from qat_jax.serve.collected import Collected
from qat_jax.serve.collection.collection import Collection
from qat_jax.serve.collection.feeding import Feeder, Progress
from qat_jax.serve.collection.migrating import told
from qat_jax.serve.collection.shared import Shared
from qat_jax.serve.encoding import SIZES
from qat_jax.serve.learning import Learning
from qat_jax.serve.limits import Limits
from qat_jax.serve.living import ENDING, Living
from qat_jax.serve.opening import INDEXES, SHARE, about_of, aspects_of, free_memory, index_of, shown_name
from qat_jax.serve.pictures import Stored
from qat_jax.serve.places import Place
from qat_jax.serve.searches import Found
from qat_jax.serve.service import Service
from qat_jax.types import QUERY_TYPES, ArrayGallery, Pieces, check_encoders

LEARNT = "learnt"
FOLLOWING = 0.5  # seconds between two looks whether this process has become the one that writes
SAMPLE = 1000  # records that are looked at for captions and instances

_log = logging.getLogger("qat_jax.serve")


class Running:
  """What a server of a collection holds beside its service."""

  def __init__(
    self,
    place: Place,
    limits: Limits,
    show: Callable[[Service], Any],
    allow: Callable[[int], Any] = lambda queries: None,
  ) -> None:
    """Opens everything, for a server to show; `allow` is told how many queries may be searched at once.

    Raises in one line for what is missing, damaged or does not fit.
    """
    if place.index not in INDEXES:
      raise ValueError(f"the index is {place.index!r}; use one of {', '.join(INDEXES)}")
    if place.index != "exact":
      index_of(place.index, ArrayGallery(jnp.eye(2)))  # raises where its package is missing
    self.place, self.limits, self.progress = place, limits, Progress()
    store = places.features_in(place.pictures)
    self.root = places.data_folder(place)
    name = places.encoder_name(place, store, self.root)
    self.encoder = None if name in (None, "none") else load_encoder(str(name), batch_size=1)
    self.folder = self.root / places.slug(name or "none")
    known = places.known_encoder(self.encoder, store)
    width = self.encoder.width if self.encoder is not None else store.width if store is not None else 0
    try:
      self.collection = (Shared if place.share else Collection)(self.folder, known, width, store)
    except OSError as error:
      if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise
      raise OSError(f"{self.folder} cannot be written ({error.strerror}); say where: --data FOLDER") from error
    files = place.images if store is not None else place.pictures if places.has_files(place.pictures) else None
    self.pictures = Stored(files, limits.image_pixels, self.root / "pictures", self.collection, self._from_source)
    self.migrated = told(self.folder)
    self.feeder: Feeder | None = None
    self.service: Service | None = None
    self.show = show
    dtype = jnp.float32 if len(self.collection) * width * 4 < SHARE * free_memory() else jnp.float16
    self.living = Living(self.collection, self._template(self._adapter()), self._shown, allow, dtype, place.index)
    if store is None:
      assert self.encoder is not None
      source = lambda: open_source("", "", place.pictures)
      self.feeder = Feeder(self.collection, source, self._encode, SIZES[-1], self.progress)
      self.feeder.source = source()  # which says at once what is wrong with it
    self.learning: Learning | None = None
    if place.learn:
      if self.encoder is None or self.feeder is None:
        raise ValueError(f"--learn wants pictures, {place.pictures} are features: train with python -m train.main")
      self.learning = Learning(place.pictures, kind_of(place.pictures), self.encoder.name, self.folder / LEARNT)
    self._threads: list[threading.Thread] = []

  def start(self, log: Callable[[str], Any]) -> None:
    """Shows what is there already, then encodes what is new, in threads."""
    log(f"{len(self.collection):,} items are in {self.folder}")
    if self.encoder is not None and self.encoder.name == places.TOY:
      log(places.NOTICE)
    self.living.start()
    if self.feeder is not None:
      for name, work in (("encoding", self._feed), ("progress", self._tell)):
        self._threads.append(threading.Thread(target=work, name=name, daemon=True))
        self._threads[-1].start()

  def stop(self) -> bool:
    """Ends all threads and lets go of the collection; says whether the threads have ended."""
    if self.feeder is not None:
      self.feeder.stop()
    if self.learning is not None:
      self.learning.stop()
    ended = self.living.stop()
    for thread in self._threads:
      thread.join(ENDING)
    self.collection.close()
    return ended and not any(thread.is_alive() for thread in self._threads)

  def reload(self) -> Service:
    """Reads the adapter anew, and returns the service that has it."""
    self.living.adapt(self._template(self._adapter()))
    assert self.service is not None
    return self.service

  def about(self) -> dict[str, Any]:
    """Returns what /v1/info says of the collection."""
    progress, items = self.progress, None if self.service is None else self.service.items
    placed = int(items.placed.sum()) if isinstance(items, Collected) else 0
    unreadable = [{"id": name, "reason": why} for name, why in list(progress.unreadable.items())[:1000]]
    return {
      "items": len(self.collection),
      "writes": self.collection.writes,
      "of": progress.all,
      "left": progress.left,
      "seconds_left": None if progress.seconds_left is None else round(progress.seconds_left),
      "unreadable": unreadable,
      "watched": self.place.watch and self.feeder is not None,
      "error": progress.error,
      "migrated": self.migrated and {**self.migrated, "left": placed},
      "learning": None if self.learning is None else {"state": self.learning.state, "said": self.learning.said},
    }

  def notes(self, service: Service, found: Found) -> list[str]:
    """Returns what a search has to be told of items that another encoder's features have placed."""
    if self.migrated is None or not isinstance(service.items, Collected):
      return []
    rankings = [ranking for ranking in (found.plain, found.adapted) if ranking is not None]
    count = max((int(service.items.placed[ranking.ids].sum()) for ranking in rankings), default=0)
    about = self.migrated
    return [
      f"{count} of these items are not encoded by this encoder yet: a map from {shown_name(about['from'][0])} placed "
      f"them, which reaches {about['share']:.0%} ({about['measure']})"
    ] * (count > 0)

  def _feed(self) -> None:
    assert self.feeder is not None
    try:
      if not self.collection.writes:
        _log.info("another process writes %s; this one follows, and takes its place when that one ends", self.folder)
        self.feeder.look()
      while not self.collection.writes:
        if self.feeder.stopped.wait(FOLLOWING):
          return
      self.feeder.run()
    except (OSError, ValueError) as error:
      self.progress.error = " ".join(str(error).split())
      _log.error("encoding stopped: %s", self.progress.error)
    if self.learning is not None:
      self._threads.append(threading.Thread(target=self._learn, name="learning", daemon=True))
      self._threads[-1].start()
    if self.place.watch:
      self.feeder.follow()

  def _learn(self) -> None:
    assert self.learning is not None and self.feeder is not None and self.feeder.source is not None
    source: Any = self.feeder.source
    some = [source.about(position) for position in range(min(len(source), SAMPLE))]
    labelled = any(one["caption"] or one["instance"] for one in some)
    self.learning.run(len(source), labelled, self.reload)
    _log.info("learning: %s%s", self.learning.state, "".join(f"; {line}" for line in self.learning.said))

  def _tell(self) -> None:
    """Shows on the terminal how far the first look at the source is."""
    while not self.progress.all and not self.progress.error and self._threads[0].is_alive():
      time.sleep(0.05)
    first, going = self.progress.left, True
    with tqdm.tqdm(total=first, unit=" pictures", desc="encoding", disable=not first) as bar:
      while going:
        going = bool(self.progress.left) and not self.progress.error and self._threads[0].is_alive()
        bar.update(first - self.progress.left - bar.n)
        time.sleep(0.2 * going)
    unreadable = list(self.progress.unreadable.items())
    some = ", ".join(f"{name} ({why})" for name, why in unreadable[:3])
    bad = f"; {len(unreadable)} pictures cannot be read: {some}" if unreadable else ""
    _log.info("%s items are searched%s", f"{len(self.collection):,}", bad)

  def _encode(self, images: list[Any]) -> np.ndarray:
    encoding = self.living.template.encoding
    return np.stack(encoding.images([encoding.pixels(image) for image in images]))

  def _shown(self, service: Service) -> None:
    self.service = service
    self.show(service)

  def _from_source(self, name: str) -> bytes | None:
    feeder = self.feeder
    if feeder is None or feeder.source is None or name not in feeder.places:
      return None
    image = feeder.source[feeder.places[name]]["image"]
    return bytes(image) if isinstance(image, bytes | bytearray | memoryview) else None

  def _adapter(self) -> Adapter | None:
    learnt = self.folder / LEARNT
    path = self.place.adapter or (str(learnt) if (learnt / "adapter/adapter.json").exists() else None)
    if path is None:
      return None
    adapter = load(path)
    check_encoders(f"the adapter {path}", adapter.encoder, f"the collection {self.folder}", self.collection.encoder)
    if adapter.width != self.collection.width:
      raise ValueError(f"the adapter {path} is {adapter.width} wide, the collection {self.collection.width}")
    return adapter

  def _template(self, adapter: Adapter | None) -> Service:
    place, collection = self.place, self.collection
    notice = places.NOTICE if self.encoder is not None and self.encoder.name == places.TOY else ""
    about = {**about_of(adapter, self.encoder), "notice": notice, "index": place.index}
    model = adapter or Adapter(collection.width, {name: Head("plain", {}, {}) for name in QUERY_TYPES})
    empty = {
      space: Pieces((jnp.ones((1, collection.width)),), (0,), (np.zeros(0, bool),), space)
      for space in {"frozen", *(head.space for head in model.heads.values())}
    }
    prepared = {name: empty[head.space] for name, head in model.heads.items()}
    kept = None if place.keep_marks is None else KeptMarks(place.keep_marks)
    aspects = aspects_of(place.adapter or str(self.folder / LEARNT), place.aspects)
    return Service(
      model, Collected([]), empty["frozen"], prepared, self.encoder, self.pictures, None, aspects, kept, about
    )
