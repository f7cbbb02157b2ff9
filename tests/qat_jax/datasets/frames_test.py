import io
import json
import pickle
import sys
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

import qat_jax
from qat_jax.datasets.frames import Frames, frame_at
from qat_jax.features.extraction import extract
from qat_jax.features.store import FeatureStore
from tests.qat_jax.features.extraction_test import Encoder, contents

av = pytest.importorskip("av")
TIMES = [i / 25 for i in range(100)]


def film(
  path, times=TIMES, codec="libx264", size=(64, 48), matrix=None, sound=False, tick=Fraction(1, 1000), **options
):
  """Writes a video whose grey is 60 times the second since its first frame, its upper left black."""
  with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as file:
    stream = file.add_stream(codec, rate=25)
    stream.width, stream.height, stream.pix_fmt, stream.codec_context.time_base = *size, "yuv420p", tick
    stream.codec_context.sample_aspect_ratio = options.pop("aspect", 1)
    quality = {"qmax": 2} if codec == "mpeg4" else {}
    stream.options = {name: str(value) for name, value in (quality | options).items()}
    stream.set_display_matrix(matrix)
    if sound:
      voice = file.add_stream("aac", rate=8000)
      for at in range(0, 8192, 1024):
        quiet = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        quiet.sample_rate, quiet.pts = 8000, at
        file.mux(voice.encode(quiet))
      file.mux(voice.encode(None))
    for time in times:
      picture = Image.new("RGB", size, (round(60 * (time - times[0])),) * 3)
      picture.paste((0, 0, 0), (0, 0, size[0] // 4, size[1] // 4))
      frame = av.VideoFrame.from_image(picture)
      frame.pts, frame.time_base = round(time / tick), tick
      file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def grey(image):
  return float(np.asarray(image)[image.height // 2 :, image.width // 2 :].mean())


def test_frames_are_the_first_of_each_span_by_their_true_times(tmp_path):
  """Times that vary, files that do not start at 0, groups of pictures that are open, and containers of all kinds."""
  uneven = [0, 0.1, 0.2, 0.5, 0.9, 1.0, 1.7, 2.4, 2.5, 2.6, 4.0]
  late = [time + 7 for time in uneven]
  film(tmp_path / "a.mp4", uneven, g=3)
  film(tmp_path / "b.mkv", late, "libx264", g=4)
  film(tmp_path / "c.webm", uneven, "libvpx-vp9")
  film(tmp_path / "d.mov", late, "mpeg4")
  film(tmp_path / "e.mkv", uneven, "libx265", **{"x265-params": "open-gop=1:keyint=4:min-keyint=1:log-level=none"})
  film(tmp_path / "f.mp4", [time + 0.5 for time in uneven], sound=True)
  film(tmp_path / "g.avi", [i / 10 for i in range(41)], "mpeg4", tick=Fraction(1, 10), bf=0)
  source = pickle.loads(pickle.dumps(Frames(tmp_path, 0.8)))
  records = [source[i] for i in range(len(source))]
  seconds = {}
  for record in records:
    seconds.setdefault(record["picture"], []).append(record["second"])
    begun = 0.5 if record["picture"] == "f.mp4" else 0  # the sound begins before the picture
    assert grey(record["image"]) == pytest.approx(60 * (record["second"] - begun), abs=2.9), record["id"]
  of_all = [0, 0.9, 1.7, 2.4, 4.0]
  assert seconds.pop("f.mp4") == [0.5, 1.0, 2.2, 2.9, 4.5]
  assert seconds.pop("g.avi") == [0, 0.8, 1.6, 2.4, 3.2, 4.0]
  assert seconds == dict.fromkeys(("a.mp4", "b.mkv", "c.webm", "d.mov", "e.mkv"), of_all)
  assert [record["id"] for record in records[:3]] == ["a.mp4#0", "a.mp4#0.9", "a.mp4#1.7"]
  assert not source.left_out
  shown = frame_at(str(tmp_path / "b.mkv"), 0, 1.7)
  assert grey(Image.open(io.BytesIO(shown))) == pytest.approx(102, abs=3)
  with pytest.raises(ValueError, match="shows no frame at 3 seconds"):
    frame_at(str(tmp_path / "a.mp4"), 0, 3)


def test_a_frame_is_upright_and_its_pixels_are_square(tmp_path):
  """As phones say it, by a matrix (x′ = ax + cy, y′ = bx + dy); the black corner is upper left in the stream."""
  corners = {"a": (0, 1, -1, 0, "upper right"), "b": (-1, 0, 0, 1, "upper right"), "c": (0, -1, 1, 0, "lower left")}
  for name, (*turn, _) in corners.items():
    matrix = [0] * 8 + [1 << 30]
    for place, sign in zip((0, 1, 3, 4), turn, strict=True):
      matrix[place] = sign * 65536
    film(tmp_path / f"{name}.mp4", [0, 2, 4], matrix=matrix)
  film(tmp_path / "d.mp4", TIMES[:3], aspect=Fraction(3, 2))
  source = Frames(tmp_path, 4)
  images = {
    source.about(i)["picture"][0]: source[i]["image"] for i in range(len(source)) if source.about(i)["second"] or i > 5
  }
  assert {name: image.size for name, image in images.items()} == {
    "a": (48, 64),
    "b": (64, 48),
    "c": (48, 64),
    "d": (96, 48),
  }
  for name, (*_, corner) in corners.items():
    dark = np.asarray(images[name])[[4, 4, -4, -4], [4, -4, 4, -4], 0] < 20
    assert dark.tolist() == [corner == f"{y} {x}" for y in ("upper", "lower") for x in ("left", "right")], name


def test_what_cannot_be_read_is_named_and_the_rest_is_taken(tmp_path):
  film(tmp_path / "whole.mp4")
  for ending in ("mp4", "mkv"):
    film(tmp_path / f"x.{ending}", g=10)
    data = (tmp_path / f"x.{ending}").read_bytes()
    (tmp_path / f"x.{ending}").unlink()
    (tmp_path / f"cut.{ending}").write_bytes(data[: len(data) * 6 // 10])
  (tmp_path / "none.mov").write_bytes(b"")
  (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:9,\n{tmp_path}/whole.mp4\n#EXT-X-ENDLIST\n")
  film(tmp_path / "sound.mkv", [], sound=True)
  source = Frames(tmp_path, 0.5)
  left_out = {kind: [name.split(":")[0] for name in names] for kind, names in source.left_out.items()}
  assert left_out == {
    "videos that cannot be read": ["list.mp4", "none.mov", "sound.mkv"],
    "ends of videos": ["cut.mkv", "cut.mp4"],
  }
  counts = {name: [source.about(i)["picture"] for i in range(len(source))].count(name) for name in ("whole.mp4",)}
  assert counts == {"whole.mp4": 8} and 10 < len(source) < 8 * 3
  assert all(abs(grey(source[i]["image"]) - 60 * source[i]["second"]) < 3 for i in range(len(source)))
  (tmp_path / "only").mkdir()
  (tmp_path / "only/a.mp4").write_bytes(b"no film")
  with pytest.raises(FileNotFoundError, match=r"can be shown; left out: 1 videos that cannot be read \(a.mp4: Invalid"):
    Frames(tmp_path / "only", 1)
  with pytest.raises(ValueError, match="0 seconds apart; give 0.001 or more"):
    Frames(tmp_path, 0)


def test_a_damaged_frame_is_left_out_by_name(tmp_path):
  film(tmp_path / "a.avi", TIMES, "mpeg4", tick=Fraction(1, 25), g=1)
  data = bytearray((tmp_path / "a.avi").read_bytes())
  at = data.index(b"movi")
  for _ in range(51):  # until the packet of second 2
    at = data.index(b"00dc", at + 4)
  data[at + 40 : at + 90] = bytes(50)
  (tmp_path / "a.avi").write_bytes(data)
  source = Frames(tmp_path, 1)
  assert [source.about(i)["second"] for i in range(4)] == [0, 1, 2, 3]
  with pytest.raises(qat_jax.datasets.UnreadableImage, match="'a.avi#2' cannot be read"):
    source[2]
  assert grey(source[3]["image"]) == pytest.approx(180, abs=3)


def test_a_killed_extraction_goes_on_and_moments_are_ranked_by_video(tmp_path, monkeypatch):
  (tmp_path / "in").mkdir()
  film(tmp_path / "in/a.mp4")
  film(tmp_path / "in/b.mp4", [time + 1 for time in TIMES[::2]])
  Image.new("RGB", (8, 8), (255, 255, 255)).save(tmp_path / "in/c.png")
  (tmp_path / "in/captions.csv").write_text("file,caption,instance\na.mp4,it dawns,1\nb.mp4,,2\nc.png,white,3\n")
  settings = {"kinds": ("img",), "batch_size": 4, "rows_per_shard": 5, "progress": False}

  class Greys(Encoder):
    def images(self, images):
      self.seen += images
      return self.unit(np.array([[grey(image) + 1, 1, 50, 0] for image in images], np.float32))

  class Killed(Greys):
    def images(self, images):
      if len(self.seen) > 8:
        raise KeyboardInterrupt
      return super().images(images)

  extract(Frames(tmp_path / "in", 0.5), Greys(), tmp_path / "whole", **settings)
  with pytest.raises(KeyboardInterrupt):
    extract(Frames(tmp_path / "in", 0.5), Killed(), tmp_path / "killed", **settings)
  assert len(list((tmp_path / "killed").rglob("*.npy"))) > 0
  store = extract(Frames(tmp_path / "in", 0.5), Greys(), tmp_path / "killed", **settings)["img"]
  assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
  assert len(store) == 17 and store.column("caption")[3] == "it dawns" and store.column("instance")[9] == "2"
  with pytest.raises(ValueError, match="source.content was"):
    extract(Frames(tmp_path / "in", 1), Greys(), tmp_path / "killed", **settings)
  items = qat_jax.adaptation.unit(np.asarray(store[:], np.float32))
  ranking = qat_jax.rank(qat_jax.adaptation.plain(items[5:6]), items, 3, group=store.column("picture"))
  assert store.ids[np.asarray(ranking.ids[0])[0]] == "a.mp4#2.52"
  assert sorted(store.column("picture")[np.asarray(ranking.ids[0])]) == ["a.mp4", "b.mp4", "c.png"]
  assert json.loads((tmp_path / "whole/meta.json").read_text())["extraction"]["source"]["type"] == "Frames"
  assert FeatureStore.open(tmp_path / "whole").column("second")[16] is None or np.isnan(store.column("second")[16])


def test_without_the_package_it_is_said_how_to_get_it(tmp_path, monkeypatch):
  film(tmp_path / "a.mp4", TIMES[:2])
  monkeypatch.setitem(sys.modules, "av", None)
  with pytest.raises(ImportError, match=r"pip install 'qat-jax\[video\]'"):
    Frames(tmp_path, 1)
