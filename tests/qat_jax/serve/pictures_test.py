import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from qat_jax.datasets.files import FORMATS, PILLOW
from qat_jax.datasets.pictures import formats
from qat_jax.serve import pictures
from qat_jax.serve.limits import Refused
from qat_jax.serve.pictures import Pictures, from_base64, media_type, read


def png(width, height, colour="red"):
  buffer = io.BytesIO()
  Image.new("RGB", (width, height), colour).save(buffer, "PNG")
  return buffer.getvalue()


def bomb(width, height):
  """A PNG of a few bytes that says it has very many pixels."""
  chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
  )


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "inside/more").mkdir(parents=True)
  (tmp_path / "secret.png").write_bytes(png(4, 4))
  for name in ("a.png", "more/b.jpg.png", "c.jpeg"):
    (tmp_path / "inside" / name).write_bytes(png(900, 600))
  (tmp_path / "inside/link.png").symlink_to(tmp_path / "secret.png")
  (tmp_path / "inside/notes.txt").write_text("not a picture")
  return tmp_path / "inside"


def item(name, **metadata):
  return {"id": name, "metadata": metadata}


def test_a_picture_is_the_file_that_a_column_names_or_the_id_with_an_ending(folder):
  shown = Pictures(folder, 10**7)
  assert shown.found(item("x", image_path="a.png")) == folder / "a.png"
  assert shown.found(item("a")) == folder / "a.png" and shown.found(item("c")) == folder / "c.jpeg"
  assert shown.found(item("more/b.jpg")) == folder / "more/b.jpg.png"
  assert shown.found(item("x", image_path=str(folder / "a.png"))) == folder / "a.png"


@pytest.mark.parametrize(
  "name",
  ["../secret", "../secret.png", "link.png", "notes.txt", "/etc/passwd", "a.png\0", "", "x" * 5000, "more", "nobody"],
)
def test_nothing_outside_the_folder_is_served_and_nothing_that_is_no_picture(folder, name):
  shown = Pictures(folder, 10**7)
  for record in (item(name), item("x", image_path=name)):
    with pytest.raises(Refused) as error:
      shown.found(record)
    assert error.value.status == 404
  outside = item("x", image_path=str(folder.parent / "secret.png"))
  with pytest.raises(Refused):
    shown.found(outside)


def test_thumbnails_are_small_and_follow_their_file(folder, monkeypatch):
  shown = Pictures(folder, 10**7)
  first = Image.open(io.BytesIO(shown.thumbnail(item("a"))))
  assert first.format == "JPEG" and first.size == (320, 213)
  (folder / "a.png").write_bytes(png(50, 50, "blue"))
  assert Image.open(io.BytesIO(shown.thumbnail(item("a")))).size == (50, 50)
  (folder / "a.png").unlink()
  with pytest.raises(Refused, match="no picture of 'a'"):
    shown.thumbnail(item("a"))
  (folder / "c.jpeg").write_bytes(b"broken")
  with pytest.raises(Refused, match="cannot be read"):
    shown.thumbnail(item("c"))
  monkeypatch.setattr(pictures, "KEPT_BYTES", 1)
  shown.thumbnail(item("more/b.jpg"))
  assert len(shown._thumbnails) == 0 and shown._bytes == 0


def test_a_moment_of_a_video_is_its_frame(tmp_path):
  pytest.importorskip("av")
  from tests.qat_jax.datasets.frames_test import film, grey

  (tmp_path / "videos").mkdir()
  film(tmp_path / "videos/a.mp4")
  film(tmp_path / "b.mp4")
  pictures, shown = Pictures(tmp_path / "videos", 10**6), item("a.mp4#2", picture="a.mp4", second=2.0)
  assert media_type(pictures.found(shown)) == "image/jpeg"
  assert grey(Image.open(io.BytesIO(pictures.thumbnail(shown)))) == pytest.approx(120, abs=3)
  for picture, second in (("a.mp4", 9.0), ("../b.mp4", 2.0), ("c.mp4", 2.0), ("a.mp4", float("nan"))):
    with pytest.raises(Refused, match="there is no picture"):
      pictures.found(item("x", picture=picture, second=second))


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "no picture"),
    (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no picture"),
    (png(40, 40)[:60], "damaged|no picture"),
    (bomb(60_000, 60_000), "pixels|no picture"),
    (bomb(3_000, 3_000), "9000000|3000×3000 pixels"),
  ],
)
def test_what_is_sent_is_read_within_limits(data, message):
  with pytest.raises(Refused, match=message) as error:
    read(data, 10**6)
  assert error.value.status == 422


def test_base64_is_taken_bare_and_as_an_address():
  data = png(3, 2)
  text = base64.b64encode(data).decode()
  assert from_base64(text) == from_base64(f"data:image/png;base64,{text[:20]}\n{text[20:]}") == data
  assert np.asarray(read(data, 6)).tolist() == [[[255, 0, 0]] * 3] * 2
  for wrong in ("$$$", "abc", "é", "data:"):
    with pytest.raises(Refused):
      read(from_base64(wrong), 100)


def written(size, kind):
  buffer = io.BytesIO()
  Image.new("RGB", size, "red").save(buffer, kind)
  return buffer.getvalue()


@pytest.mark.parametrize(
  ("kind", "content_type"),
  [
    ("AVIF", "image/avif"),
    ("WEBP", "image/webp"),
    ("PNG", "image/png"),
    ("MPO", "image/jpeg"),
    ("JPEG2000", "application/octet-stream"),
    ("TIFF", "application/octet-stream"),
  ],
)
def test_what_a_picture_is_decides_and_not_its_ending(tmp_path, kind, content_type):
  (tmp_path / "a.jpg").write_bytes(written((800, 600), kind))
  shown = Pictures(tmp_path, 10**7)
  assert Image.open(io.BytesIO(shown.thumbnail(item("a")))).size == (320, 240)
  assert pictures.media_type(shown.found(item("a"))) == content_type


def test_a_page_that_is_called_a_picture_is_only_to_be_saved(tmp_path):
  (tmp_path / "a.jpg").write_text("<html><script>alert(1)</script></html>")
  assert pictures.media_type(tmp_path / "a.jpg") == "application/octet-stream"


@pytest.mark.parametrize("size", [(200_000, 1), (1, 200_000)])
def test_a_side_has_a_limit_of_its_own(size):
  with pytest.raises(Refused, match=r"a side may have 131,072"):
    read(written(size, "PNG"), 10**7)


@pytest.mark.parametrize(("size", "small"), [((100_000, 1), (320, 1)), ((1, 100_000), (1, 320))])
def test_a_long_strip_has_a_thumbnail(tmp_path, size, small):
  (tmp_path / "a.png").write_bytes(written(size, "PNG"))
  assert Image.open(io.BytesIO(Pictures(tmp_path, 10**7).thumbnail(item("a")))).size == small


def test_what_a_folder_gives_is_what_the_service_opens():
  Image.init()
  assert {ending: Image.EXTENSION[ending] for ending in PILLOW} == PILLOW  # as Pillow says
  assert set(formats()) | {"HEIF"} == set(FORMATS) == {*PILLOW.values(), "HEIF"}
