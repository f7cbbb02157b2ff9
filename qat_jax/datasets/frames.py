"""Frames of videos as items: one for each so many seconds, with its `picture` (the video) and its `second` in it.

`rank(…, group="picture")` ranks videos by their best moment. Pictures beside the videos are items as they are.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import functools
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from qat_jax.datasets import SECOND, UnreadableImage
from qat_jax.datasets.files import VIDEOS, LeftOut, left_out_of
from qat_jax.datasets.folder import FolderSource
from qat_jax.datasets.sources import Derived, Kept, checked_position

RUN = 8  # frames that are decoded in one go, and held
KEPT = 3  # of such runs, while threads read them
LEAST = 0.001  # seconds between two frames
MICRO = 1_000_000
# Nothing that names other files or addresses, as a playlist does, is opened.
OPTIONS = {"format_whitelist": "mov,matroska,avi", "protocol_whitelist": "file"}
# The signs of a display matrix → how it turns a frame.
TURNS = {
  (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
  (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
  (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
  (0, -1, 1, 0): Image.Transpose.ROTATE_90,
  (0, 1, -1, 0): Image.Transpose.ROTATE_270,
  (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
  (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}


@dataclasses.dataclass(frozen=True)
class Video:
  """What is taken of a video: when each frame is shown, in the stream's own units and in microseconds from the start.

  `keys` are the times, in the stream's units, of the frames that decoding can begin with. `fault` says why there is
  less than the file tells, "" where there is not.
  """

  stamps: list[int]
  micros: list[int]
  keys: list[int]
  fault: str = ""


def looked_through(path: str, step: int) -> Video:
  """Returns the first frame of each `step` microseconds of a video, by the times that its packets tell.

  Nothing is decoded. Raises ValueError or OSError where the file cannot be read or shows nothing.
  """
  with _opened(path) as (container, stream):
    faults, times = [], dict[int, int]()
    clock = lambda stamp: round(stamp * stream.time_base * MICRO)
    keys, end = [], 0
    try:
      for packet in container.demux(stream):
        stamp = packet.dts if packet.pts is None else packet.pts
        if packet.size and packet.is_corrupt:
          faults.append("it is cut short")
        elif packet.size and stamp is not None:
          keys += [stamp] if packet.is_keyframe else []
          times |= {} if packet.is_discard else {stamp: clock(stamp)}
          end = max(end, clock(stamp + (packet.duration or 0)))
    except Exception as error:  # broken files make decoders raise anything
      faults.append(f"it is damaged ({_told(error)})")
    length = clock(stream.duration) if stream.duration else container.duration or 0
    if end + MICRO < length:
      faults.append(f"its pictures end at {end / MICRO:.1f} of {length / MICRO:.1f} seconds")
    if not times:
      raise ValueError("; ".join(faults) or "it has no frames")
    start = min(min(times.values()), container.start_time if container.start_time is not None else MICRO**3)
  shown = sorted((micro - start, stamp) for stamp, micro in times.items())
  firsts = [next(of_step) for _, of_step in itertools.groupby(shown, lambda frame: frame[0] // step)]
  micros, stamps = ([frame[i] for frame in firsts] for i in (0, 1))
  return Video(stamps, micros, sorted(keys), "; ".join(dict.fromkeys(faults)))


def pictures_at(path: str, stamps: Sequence[int], keys: Sequence[int]) -> dict[int, Image.Image]:
  """Returns the frames (RGB, upright) shown at some times, each in the stream's units; broken ones are missing.

  `keys` are as of a `Video`. Raises ValueError or OSError where the file cannot be read.
  """
  found: dict[int, Image.Image] = {}
  before = lambda stamp: keys[at - 1] if (at := bisect.bisect_right(keys, stamp)) else None
  for threads in ("AUTO", "SLICE"):  # the second time from the beginning, and no fault loses several frames
    if missing := sorted(set(stamps) - found.keys()):
      with _opened(path, threads) as (container, stream):
        for key, some in itertools.groupby(missing, before if threads == "AUTO" else lambda _: None):
          wanted = set(some)
          late = max(wanted) + round(2 / stream.time_base)  # frames may come a little out of order
          for frame in _frames(container, stream, key):
            if frame.pts in wanted and not frame.is_corrupt:
              found[frame.pts] = _upright(frame, stream)
              wanted.remove(frame.pts)
            if not wanted or (frame.pts or 0) > late:
              break
  return found


def _frames(container: Any, stream: Any, key: int | None) -> Iterator[Any]:
  """Yields all frames that can be decoded from a key frame on; None: from where the file is."""
  begun = False
  with contextlib.suppress(Exception):  # which frames are missing is seen by the caller
    if key is not None:
      container.seek(key, stream=stream)
    for packet in container.demux(stream):
      begun |= packet.is_keyframe
      if begun and packet.size and not packet.is_corrupt:
        with contextlib.suppress(Exception):  # others may be whole
          yield from packet.decode()
  with contextlib.suppress(Exception):
    yield from stream.decode(None)  # those that the decoder still holds, also where the file broke off


@functools.lru_cache(64)
def frame_at(path: str, changed: int, second: float) -> bytes:
  """Returns the frame that a file shows at the second of an item, as JPEG; raises ValueError where there is none.

  `changed` is the date of the file: what is kept of an older one is not returned.
  """
  with _opened(path) as (container, stream):
    start = (container.start_time or 0) / MICRO
    container.seek(round((start + second) * MICRO))
    late = lambda frame: float((frame.pts or 0) * stream.time_base) - start - second
    frames = itertools.takewhile(lambda frame: late(frame) < 1, _frames(container, stream, None))
    if (frame := next((frame for frame in frames if abs(late(frame)) < LEAST), None)) is None:
      raise ValueError(f"{path} shows no frame at {second} seconds")
    buffer = io.BytesIO()
    _upright(frame, stream).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _upright(frame: Any, stream: Any) -> Image.Image:
  """Returns a frame as a player shows it: its pixels square, turned as the file says."""
  image, ratio = frame.to_image(), float(stream.sample_aspect_ratio or 1)
  if ratio != 1 and 0.25 < ratio < 4:
    image = image.resize((max(1, round(image.width * ratio)), image.height), Image.Resampling.BICUBIC)
  matrix = frame.side_data.get("DISPLAYMATRIX")
  turn = None if matrix is None else TURNS.get(tuple(np.sign(np.frombuffer(matrix, np.int32))[[0, 1, 3, 4]].tolist()))
  return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _opened(path: str, threads: str = "AUTO") -> Iterator[tuple[Any, Any]]:
  """Yields a file and its video stream, to be decoded by `threads`; of several frames at once a fault may lose all.

  Raises ValueError where there is none but, maybe, a cover's picture.
  """
  try:
    import av
  except ImportError as error:
    raise ImportError("frames of videos want a package: pip install 'qat-jax[video]'") from error
  with av.open(os.path.abspath(path), options=OPTIONS) as container:
    stream: Any = container.streams.best("video")
    if stream is None or "attached_pic" in str(stream.disposition):
      raise ValueError("it has no video stream")
    stream.thread_type = threads
    yield container, stream


def _told(error: Exception) -> str:
  return getattr(error, "strerror", None) or str(error)


class Frames(Derived):
  """A folder's pictures, and a frame for each `seconds` of its videos: the first that is shown in each such span.

  A span in which no frame begins has none. Times are those of presentation, from the beginning of the file. Ids of
  frames are the video's, "#", and the second: "clip.mp4#12.5". The metadata of a video is that of its frames.
  """

  def __init__(self, folder: str | os.PathLike, seconds: float) -> None:
    """Looks through all videos.

    Raises ValueError for seconds below a thousandth, ImportError without the package of the extra `video`,
    FileNotFoundError where there is nothing to show.
    """
    if not LEAST <= seconds < 1e6:
      raise ValueError(f"frames are to be {seconds} seconds apart; give {LEAST} or more, such as 1 or 0.5")
    super().__init__(FolderSource(folder, further=VIDEOS))
    self.left_out: LeftOut = left_out_of(self.source)
    self.videos: list[Video | None] = [None] * len(self.source)  # None: a picture
    for row, file in enumerate(row["file"] for row in self.source.rows):
      if file.lower().endswith(VIDEOS):
        self.videos[row] = self._video(file, round(seconds * MICRO))
    self.starts = [0, *itertools.accumulate(1 if video is None else len(video.stamps) for video in self.videos)]
    if not len(self):
      raise FileNotFoundError(f"nothing in {folder} can be shown; {'; '.join(self.left_out.lines())}")
    self._runs = Kept(self._run, KEPT)

  def __len__(self) -> int:
    return self.starts[-1]

  def told(self) -> str:
    """Returns how many frames and pictures there are, in words."""
    videos, pictures = sum(video is not None and bool(video.stamps) for video in self.videos), self.videos.count(None)
    return f"{len(self) - pictures} frames of {videos} videos{f' and {pictures} pictures' if pictures else ''}"

  def about(self, position: int) -> dict[str, Any]:
    """Returns the record of an item without its image."""
    row, number = self._place(position)
    return self._of_frame(self.source.about(row), row, number)

  def _stamp(self, stamp: Callable[[int], dict[str, Any]], position: int) -> dict[str, Any]:
    row, number = self._place(position)
    return self._of_frame(stamp(row), row, number)

  def __getitem__(self, position: int) -> dict[str, Any]:
    """Returns the record of a picture, or of a frame decoded; raises UnreadableImage where it cannot be read."""
    row, number = self._place(position)
    video = self.videos[row]
    if video is None:
      return self._of_frame(self.source[row], row, number)
    record, found = self.about(position), self._runs((row, number // RUN))
    if isinstance(found, Exception) or video.stamps[number] not in found:
      raise UnreadableImage(record["id"], _told(found) if isinstance(found, Exception) else "the frame is damaged")
    return {**record, "image": found[video.stamps[number]]}

  def _place(self, position: int) -> tuple[int, int]:
    """Returns the row of an item's file, and the item's number there."""
    row = bisect.bisect_right(self.starts, checked_position(position, self)) - 1
    return row, position - self.starts[row]

  def _of_frame(self, record: dict[str, Any], row: int, number: int) -> dict[str, Any]:
    about, video = {**record, "picture": str(record["id"]), SECOND: None}, self.videos[row]
    if video is None:
      return about
    second = video.micros[number] / MICRO
    return {**about, "id": f"{record['id']}#{f'{second:.6f}'.rstrip('0').rstrip('.')}", SECOND: second}

  def _video(self, file: str, step: int) -> Video:
    try:
      video = looked_through(str(self.source.folder / file), step)
    except ImportError:
      raise
    except Exception as error:
      self.left_out.add("videos that cannot be read", [f"{file}: {_told(error)}"])
      return Video([], [], [])
    if video.fault:
      self.left_out.add("ends of videos", [f"{file}: {video.fault}"])
    return video

  def _run(self, which: tuple[int, int]) -> dict[int, Image.Image] | Exception:
    """Returns RUN frames of a video, by their times; or why the file cannot be read."""
    row, run = which
    video = self.videos[row]
    assert video is not None
    try:
      path = str(self.source.folder / self.source.rows[row]["file"])
      return pictures_at(path, video.stamps[run * RUN : (run + 1) * RUN], video.keys)
    except Exception as error:
      return error
