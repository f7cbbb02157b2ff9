import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qat_jax.datasets import UnreadableImage
from qat_jax.datasets.files import IMAGES
from qat_jax.datasets.folder import FolderSource
from qat_jax.datasets.pictures import decode

ROWS = [
  {"file": "b.jpg", "caption": "a blue one", "instance": "blue", "year": "7"},
  {"file": "more/c.png", "caption": "a green one, striped", "instance": "green", "year": "8"},
]


@pytest.fixture
def folder(tmp_path):
  (tmp_path / "more").mkdir()
  for name, colour in (("b.jpg", (0, 0, 200)), ("a.JPG", (200, 0, 0)), ("more/c.png", (0, 200, 0))):
    Image.new("RGB", (6, 4), colour).save(tmp_path / name)
  (tmp_path / "notes.md").write_text("no image")
  return tmp_path


def write_csv(path):
  path.write_text('file,caption,instance,year\nb.jpg,a blue one,blue,7\nmore/c.png,"a green one, striped",green,8\n')


WRITERS = {
  "captions.csv": write_csv,
  "captions.tsv": lambda p: p.write_text("\n".join("\t".join(r) for r in [ROWS[0], *map(dict.values, ROWS)])),
  "captions.jsonl": lambda p: p.write_text("\n".join(map(json.dumps, ROWS)) + "\n"),
  "captions.parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p),
}


def test_images_are_listed_by_path_with_the_text_beside_them(folder):
  (folder / "a.txt").write_text(" a red one\n")
  source = FolderSource(folder)
  assert [source[i]["id"] for i in range(len(source))] == ["a.JPG", "b.jpg", "more/c.png"]
  assert [source[i]["caption"] for i in range(3)] == ["a red one", None, None]
  assert source[0]["instance"] is None
  assert decode(source[0]).getpixel((1, 1))[0] > 150
  assert decode(source[2]).getpixel((1, 1)) == (0, 200, 0)
  source = FolderSource(folder, instance_by_folder=True)
  assert [source[i]["instance"] for i in range(3)] == [None, None, "more"]


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_says_which_images_there_are_and_what_they_show(folder, name):
  WRITERS[name](folder / name)
  source = FolderSource(folder)
  assert len(source) == 2
  record = source[1]
  assert decode(record).getpixel((0, 0)) == (0, 200, 0)
  del record["image"]
  assert record == {**ROWS[1], "id": "more/c.png"}


@pytest.mark.parametrize("error", [RuntimeError("missing item"), KeyError("tag"), EOFError(), MemoryError()])
def test_whatever_a_decoder_raises_the_image_is_named(folder, monkeypatch, error):
  def broken(image, mode):
    raise error

  monkeypatch.setattr(Image.Image, "convert", broken)
  with pytest.raises(UnreadableImage, match=rf"'b\.jpg' cannot be read: {type(error).__name__}"):
    decode(FolderSource(folder)[1])


def test_a_file_that_went_away_is_an_unreadable_image(folder):
  source = FolderSource(folder)
  (folder / "b.jpg").unlink()
  with pytest.raises(UnreadableImage, match=r"'b\.jpg' cannot be read: No such file"):
    source[1]


UNNAMED = "columns as captions; call the one that holds them caption"
IMAGE = "columns called image, which is the picture"
REPEATED = "further rows of pictures, of which the first counts"


@pytest.mark.parametrize(
  ("name", "text", "expected", "left_out"),
  [
    ("captions.csv", "file|caption\n b.jpg |x, y\n", "b.jpg:x, y:None", {}),
    ("captions.csv", 'file, caption\nb.jpg, "x, y"\n', "b.jpg:x, y:None", {}),
    ("captions.csv", '\ufefffile,caption\r\nb.jpg,"a\r\nb\u00e9"\r\n', "b.jpg:a\r\nb\u00e9:None", {}),
    ("metadata.csv", "\ufefffile_name;Text\nb.jpg;x, y\n", "b.jpg:x, y:None", {}),
    ("Captions.CSV", "file,Caption\nmore\\c.png,x\n", "more/c.png:x:None", {}),
    ("captions.csv", "file,caption\n./more/../b.jpg,x\n{folder}/a.JPG,y\n", "b.jpg:x:None a.JPG:y:None", {}),
    ("captions.csv", "file,caption\nno\u0308.png,x\n", "n\u00f6.png:x:None", {}),
    ("captions.csv", "file,caption\nb.jpg,x\nb.jpg,z\n", "b.jpg:x:None", {REPEATED: ["b.jpg: z"]}),
    ("captions.csv", "file,id,instance\nb.jpg,nan,3.0\na.JPG,7.0,NaN\n", "b.jpg:None:3 7:None:None", {}),
    ("captions.csv", "file,id,instance\nb.jpg,NULL,None\na.JPG,007,<NA>\n", "b.jpg:None:None 007:None:None", {}),
    ("captions.csv", "sep=;\ncaption;file\rx, y;b.jpg\r", "b.jpg:x, y:None", {}),
    ("captions.csv", ",file,caption,,\n0,b.jpg,x,,,\n1,a.JPG,y\n", "b.jpg:x:None a.JPG:y:None", {}),
    ("captions.csv", 'file,instance\nb.jpg," 3 "\n', "b.jpg:None:3", {}),
    ("captions.csv", "file_name,image\nb.jpg,x\n", "b.jpg:None:None", {IMAGE: ["image"]}),
    ("captions.jsonl", '{"file": "b.jpg", "caption": "x"}\r{"file": "a.JPG"}\r', "b.jpg:x:None a.JPG:None:None", {}),
    (
      "captions.jsonl",
      '{"file": "b.jpg", "instance": NaN}\n{"file": "b.jpg"}\n'
      '{"file": "a.JPG", "instance": 3}\n{"file": "a.JPG", "instance": "3"}',
      "b.jpg:None:None a.JPG:None:3",
      {REPEATED: ["b.jpg", "a.JPG"]},
    ),
    ("captions.csv", "file,instance\nb.jpg,3.0\na.JPG,3.1\n", "b.jpg:None:3.0 a.JPG:None:3.1", {}),
    ("captions.csv", "file,description\nb.jpg,x\n", "b.jpg:None:None", {UNNAMED: ["description"]}),
    ("captions.jsonl", '{"file": "b.jpg", "id": 0, "instance": 0, "caption": ""}', "0:None:0", {}),
    ("captions.jsonl", f'{{"file": "b.jpg", "instance": {"9" * 5000}}}', f"b.jpg:None:{'9' * 5000}", {}),
    ("captions.csv", "image,id\na.JPG,seven\n", "seven:None:None", {}),
  ],
)
def test_what_tables_of_other_people_mean(folder, name, text, expected, left_out):
  (folder / "n\u00f6.png").write_bytes((folder / "more/c.png").read_bytes())
  (folder / name).write_bytes(text.replace("{folder}", str(folder)).encode())
  source = FolderSource(folder)
  records = [source[i] for i in range(len(source))]
  assert " ".join(f"{record['id']}:{record['caption']}:{record['instance']}" for record in records) == expected
  assert left_out.items() <= source.left_out.items()
  assert [name for kind in source.left_out if "does not name" in kind for name in source.left_out[kind]]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n"
OPEN = 'file,caption\na.JPG,a\nb.jpg,"12 inch\nmore/c.png,c\n'


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    ("captions.csv", "file,caption\nb.jpg,x\nz.jpg,y\n", r"names 1 files that are not in .*: z\.jpg"),
    ("captions.csv", "picture,caption\nb.jpg,x\n", r"has the columns \['picture', 'caption'\]; one of \('file'"),
    ("captions.csv", "file,caption\n", "no images in .*captions.csv"),
    ("captions.csv", b"file,caption\na.JPG,caf\xe9\n", "captions.csv, line 2, is not UTF-8 .byte 0xe9."),
    ("captions.csv", "file,caption\na.JPG,x\n".encode("utf-16"), "captions.csv is UTF-16; save it as UTF-8"),
    ("captions.csv", "file,caption\na.JPG,one, two\n", "captions.csv, line 2: more cells than the 2 columns"),
    ("captions.csv", "file,caption\n,one\n", "row 1 of .*captions.csv names no image: its 'file' is empty"),
    ("captions.csv", "file,instance\nb.jpg,x\nb.jpg,y\n", "has 'b.jpg' in two rows that differ in 'instance'"),
    ("captions.csv", "file,id\nb.jpg,1\na.JPG,1\n", "captions.csv has '1' in two rows that differ in 'file'"),
    ("captions.csv", OPEN, r"captions\.csv, line 3: .*a quote (there )?stays open"),
    ("captions.csv", OPEN + 'a.JPG,12"\n', r"captions\.csv, line 3: .*a quote (there )?stays open"),
    ("captions.csv", 'caption,file\n"12 inch,b.jpg\n5 x 12",a.JPG\n', "line 2: a quote stays open there"),
    ("captions.jsonl", '{"file": "a.JPG"}\n\n{"file": \n', "captions.jsonl, line 3, is no JSON: Expecting value at"),
    ("captions.jsonl", '["a.JPG"]\n', "captions.jsonl, line 1, is a JSON list; wanted an object a line"),
    ("captions.jsonl", '{"file": "b.jpg", "caption": "x", "caption": "y"}', "line 1, has the field 'caption' twice"),
    ("captions.jsonl", '{"file": "b.jpg", "a\\ud83d": "x"}', "line 1 has the column .* with half a surrogate pair"),
    ("captions.jsonl", '{"file": "b.jpg", "id": "a\\ud83d"}', "b.jpg, 'id', has text with half a surrogate"),
    ("captions.csv", POINTER, "captions.csv is a pointer of Git LFS, not the file; fetch it"),
    ("a.txt", POINTER, "a.txt is a pointer of Git LFS, not the file; fetch it"),
    ("a.txt", b"fine\na caf\xe9", "a.txt, line 2, is not UTF-8"),
  ],
)
def test_what_cannot_be_read_or_says_two_things_is_named_with_its_place(folder, name, text, words):
  (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises((ValueError, FileNotFoundError), match=words):
    FolderSource(folder).about(0)


def test_a_text_belongs_to_the_image_whose_name_is_most_like_its_own(folder):
  texts = {"a.txt": "small", "A.txt": "large", "b.txt": "any b", "b.jpg.txt": "this b", "more/o\u0308.txt": "o"}
  for name, text in texts.items():
    (folder / name).write_text(text)
  for name in ("a.jpg", "A.jpg", "b.png", "more/\u00f6.png"):
    (folder / name).write_bytes(b"")
  source = FolderSource(folder)
  read = {record["id"]: record["caption"] for record in map(source.about, range(len(source)))}
  expected = {"A.jpg": "large", "a.JPG": "small", "a.jpg": "small", "b.jpg": "this b", "b.png": "any b"}
  assert read == expected | {"more/c.png": None, "more/\u00f6.png": "o"}


@pytest.mark.parametrize("ending", IMAGES)
def test_an_open_quote_is_noticed_by_pictures_of_any_ending(folder, ending):
  (folder / "captions.csv").write_text(f'file,caption\na{ending},"12 inch\nb{ending},b\nc{ending},12"\n')
  with pytest.raises(ValueError, match="line 2: a quote stays open there"):
    FolderSource(folder)


def test_odd_file_names(folder):
  for name in ("._a.JPG", ".thumbs/b.jpg"):  # of other programs
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"")
  (folder / "a b, #1 \u00e9.png").write_bytes((folder / "more/c.png").read_bytes())
  assert [row["file"] for row in FolderSource(folder).rows] == ["a b, #1 \u00e9.png", "a.JPG", "b.jpg", "more/c.png"]
  with open(os.fsencode(folder) + b"/caf\xe9.png", "wb"):
    pass
  with pytest.raises(ValueError, match=r"the file name 'caf\\udce9.png' in .* is not UTF-8; rename the file"):
    FolderSource(folder)


def test_missing_and_empty_folders_are_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="no folder"):
    FolderSource(tmp_path / "none")
  with pytest.raises(FileNotFoundError, match="no images in"):
    FolderSource(tmp_path)


def test_links_are_followed_and_folders_of_systems_are_left_out(folder, tmp_path_factory):
  far = tmp_path_factory.mktemp("far")
  (far / "d.avif").write_bytes(b"")
  (folder / "link").symlink_to(far)
  (folder / "more/up").symlink_to(folder)
  (folder / "@eaDir").mkdir()
  (folder / "@eaDir/b.jpg").write_bytes(b"")
  source = FolderSource(folder)
  assert [row["file"] for row in source.rows] == ["a.JPG", "b.jpg", "link/d.avif", "more/c.png"]
  assert source.left_out == {
    "system and hidden folders": ["@eaDir"],
    "links to folders that are read already, or in circles": ["more/up/"],
    ".md files": ["notes.md"],
  }


def test_tables_in_subfolders_speak_of_their_own_folders(folder):
  for part, text in (("train", "file_name,text\nx.png,a red one\n"), ("test", "file_name,text\nin/y.png,a blue one\n")):
    (folder / part / "in").mkdir(parents=True)
    for name in ("x.png", "in/y.png"):
      (folder / part / name).write_bytes((folder / "more/c.png").read_bytes())
    (folder / part / "metadata.csv").write_text(text)
  (folder / "more/metadata.csv").write_text("size\n3\n")
  source = FolderSource(folder)
  read = {record["id"]: record["caption"] for record in map(source.__getitem__, range(len(source)))}
  alone = {"a.JPG": None, "b.jpg": None, "more/c.png": None}
  assert read == alone | {"train/x.png": "a red one", "test/in/y.png": "a blue one"}
  assert source.left_out[f"pictures that {folder / 'test/metadata.csv'} does not name"] == ["test/x.png"]
  assert source.left_out["tables of captions that are not read"] == ["more/metadata.csv"]
  (folder / "captions.csv").write_text("file,caption\nb.jpg,mine\n")
  source = FolderSource(folder)
  assert [row["file"] for row in source.rows] == ["b.jpg"]  # the folder's own table speaks of all
  tables = source.left_out["tables of captions that are not read"]
  assert tables == [f"{part}/metadata.csv" for part in ("more", "test", "train")]


def test_text_that_is_not_utf8_stops_nothing_but_in_known_columns(folder, caplog):
  latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
  pq.write_table(pa.table({"file": ["b.jpg"], "note": latin}), folder / "captions.parquet")
  assert FolderSource(folder)[0]["id"] == "b.jpg"
  assert "values are left out" in caplog.text and "captions.parquet, column 'note', is not UTF-8" in caplog.text
  pq.write_table(pa.table({"file": ["b.jpg"], "caption": latin}), folder / "captions.parquet")
  with pytest.raises(ValueError, match=r"captions\.parquet, column 'caption', is not UTF-8"):
    FolderSource(folder)
