import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from qat_jax.datasets import UnreadableImage, decode
from qat_jax.datasets.folder import FolderSource

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


@pytest.mark.parametrize("name", WRITERS)
def test_a_table_says_which_images_there_are_and_what_they_show(folder, name):
  WRITERS[name](folder / name)
  source = FolderSource(folder)
  assert len(source) == 2
  record = source[1]
  assert decode(record).getpixel((0, 0)) == (0, 200, 0)
  del record["image"]
  assert record == {**ROWS[1], "id": "more/c.png"}


def test_a_table_may_lie_elsewhere_and_give_ids(folder, tmp_path_factory):
  table = tmp_path_factory.mktemp("tables") / "list.csv"
  table.write_text("image,id\na.JPG,seven\n")
  source = FolderSource(folder, table)
  assert (len(source), source[0]["id"], source[0]["caption"]) == (1, "seven", None)


def test_numbers_in_a_table_are_names_too(folder):
  rows = [{"file": "a.JPG", "id": 0, "instance": 0, "caption": ""}, {"file": "b.jpg", "id": 1, "instance": 12}]
  (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
  records = [FolderSource(folder)[i] for i in range(2)]
  assert [(r["id"], r["instance"], r["caption"]) for r in records] == [("0", "0", None), ("1", "12", None)]


@pytest.mark.parametrize("error", [RuntimeError("missing item"), KeyError("tag"), EOFError(), MemoryError()])
def test_whatever_a_decoder_raises_the_image_is_named(folder, monkeypatch, error):
  def broken(image, mode):
    raise error

  monkeypatch.setattr(Image.Image, "convert", broken)
  with pytest.raises(UnreadableImage, match=rf"'b\.jpg' cannot be read: {type(error).__name__}"):
    decode(FolderSource(folder)[1])


def test_subfolders_are_instances_on_request(folder):
  source = FolderSource(folder, instance_by_folder=True)
  assert [source[i]["instance"] for i in range(3)] == [".", ".", "more"]


def test_a_file_that_went_away_is_an_unreadable_image(folder):
  source = FolderSource(folder)
  (folder / "b.jpg").unlink()
  with pytest.raises(UnreadableImage, match=r"'b\.jpg' cannot be read: No such file"):
    source[1]


@pytest.mark.parametrize(
  ("text", "error", "words"),
  [
    ("file,caption\nb.jpg,x\nz.jpg,y\n", FileNotFoundError, r"names 1 files that are not in .*: z\.jpg"),
    ("picture,caption\nb.jpg,x\n", ValueError, r"has the columns \['picture', 'caption'\]; one of \('file'"),
    ("file,caption\n", FileNotFoundError, "no images in .*captions.csv"),
  ],
)
def test_bad_tables_are_refused(folder, text, error, words):
  (folder / "captions.csv").write_text(text)
  with pytest.raises(error, match=words):
    FolderSource(folder)


@pytest.mark.parametrize(
  ("name", "content", "words"),
  [
    (
      "captions.csv",
      "file,caption\na.JPG,une caf\u00e9\n".encode("latin-1"),
      "captions.csv, line 2, is not UTF-8 .byte 0xe9.",
    ),
    ("captions.csv", "file,caption\na.JPG,x\n".encode("utf-16"), "captions.csv is UTF-16; save it as UTF-8"),
    ("captions.csv", b"file,caption\na.JPG,one, two\n", "captions.csv, line 2: more cells than the 2 columns"),
    ("captions.csv", b"file,caption\n,one\n", "row 1 of .*captions.csv names no image: its 'file' is empty"),
    (
      "captions.jsonl",
      b'{"file": "a.JPG"}\n\n{"file": \n',
      "captions.jsonl, line 3, is no JSON: Expecting value at character",
    ),
    ("captions.jsonl", b'["a.JPG"]\n', "captions.jsonl, line 1, is a JSON list; wanted an object a line"),
    ("a.txt", "fine\na caf\u00e9".encode("latin-1"), "a.txt, line 2, is not UTF-8"),
  ],
)
def test_what_cannot_be_read_is_named_with_its_line(folder, name, content, words):
  (folder / name).write_bytes(content)
  with pytest.raises(ValueError, match=words):
    FolderSource(folder).about(0)


def test_tables_with_a_byte_order_mark_and_line_ends_of_windows_are_read(folder):
  (folder / "captions.csv").write_bytes('file,caption\r\nb.jpg,"a\r\nb\u00e9"\r\n'.encode("utf-8-sig"))
  assert FolderSource(folder)[0]["caption"] == "a\r\nb\u00e9"


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
  with pytest.raises(FileNotFoundError, match="no captions file"):
    FolderSource(tmp_path, tmp_path / "none.csv")


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


def test_an_open_quote_is_named_with_its_line(folder):
  for end in ("", 'a.JPG,12"\n'):
    (folder / "captions.csv").write_text(f'file,caption\na.JPG,a\nb.jpg,"12 inch\nmore/c.png,c\n{end}')
    with pytest.raises(ValueError, match=r"captions\.csv, line 3: .*a quote (there )?stays open"):
      FolderSource(folder)


def test_metadata_of_an_image_folder_with_semicolons_and_a_mark(folder):
  (folder / "metadata.csv").write_text("\ufefffile_name;Text\nb.jpg;a blue one\n", encoding="utf-8")
  source = FolderSource(folder)
  assert source[0]["caption"] == "a blue one"
  assert source.left_out[f"pictures that {folder / 'metadata.csv'} does not name"] == ["a.JPG", "more/c.png"]


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


@pytest.mark.parametrize(
  ("name", "text", "expected", "left_out"),
  [
    ("captions.csv", "file|caption\n b.jpg |x, y\n", [("b.jpg", "x, y", None)], {}),
    ("captions.csv", 'file, caption\nb.jpg, "x, y"\n', [("b.jpg", "x, y", None)], {}),
    ("Captions.CSV", "file,Caption\nmore\\c.png,x\n", [("more/c.png", "x", None)], {}),
    (
      "captions.csv",
      "file,caption\n./more/../b.jpg,x\n{folder}/a.JPG,y\n",
      [("b.jpg", "x", None), ("a.JPG", "y", None)],
      {},
    ),
    ("captions.csv", "file,caption\nno\u0308.png,x\n", [("n\u00f6.png", "x", None)], {}),
    (
      "captions.csv",
      "file,caption\nb.jpg,x\na.JPG,y\nb.jpg,z\n",
      [("b.jpg", "x", None), ("a.JPG", "y", None)],
      {"further rows of pictures, of which the first counts": ["b.jpg: z"]},
    ),
    ("captions.csv", "file,id,instance\nb.jpg,nan,3.0\na.JPG,7.0,NaN\n", [("b.jpg", None, "3"), ("7", None, None)], {}),
    ("captions.csv", "file,instance\nb.jpg,3.0\na.JPG,3.1\n", [("b.jpg", None, "3.0"), ("a.JPG", None, "3.1")], {}),
    (
      "captions.csv",
      "file,description\nb.jpg,x\n",
      [("b.jpg", None, None)],
      {"columns as captions; call the one that holds them caption": ["description"]},
    ),
  ],
)
def test_what_tables_of_other_people_mean(folder, name, text, expected, left_out):
  (folder / "n\u00f6.png").write_bytes((folder / "more/c.png").read_bytes())
  (folder / name).write_text(text.replace("{folder}", str(folder)))
  source = FolderSource(folder)
  records = [source[i] for i in range(len(source))]
  assert [(record["id"], record["caption"], record["instance"]) for record in records] == expected
  assert left_out.items() <= source.left_out.items()


@pytest.mark.parametrize(
  ("name", "text", "words"),
  [
    (
      "captions.csv",
      "file,instance\nb.jpg,x\nb.jpg,y\n",
      "captions.csv has 'b.jpg' in two rows that differ in 'instance'",
    ),
    ("captions.csv", "file,id\nb.jpg,1\na.JPG,1\n", "captions.csv has '1' in two rows that differ in 'file'"),
    ("captions.csv", 'caption,file\n"12 inch,b.jpg\n5 x 12",a.JPG\n', "line 2: a quote stays open there"),
    ("captions.jsonl", '{"file": "b.jpg", "caption": "x", "caption": "y"}', "line 1, has the field 'caption' twice"),
    ("captions.jsonl", '{"file": "b.jpg", "a\\ud83d": "x"}', "line 1 has the column .* with half a surrogate pair"),
    (
      "captions.jsonl",
      '{"file": "b.jpg", "id": "a\\ud83d"}',
      "captions.jsonl: b.jpg, 'id', has text with half a surrogate",
    ),
  ],
)
def test_tables_that_say_two_things_or_no_text_are_refused(folder, name, text, words):
  (folder / name).write_text(text)
  with pytest.raises(ValueError, match=words):
    FolderSource(folder)


def test_text_that_is_not_utf8_stops_nothing_but_in_known_columns(folder, caplog):
  latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
  pq.write_table(pa.table({"file": ["b.jpg"], "note": latin}), folder / "captions.parquet")
  assert FolderSource(folder)[0]["id"] == "b.jpg"
  assert "values are left out" in caplog.text and "captions.parquet, column 'note', is not UTF-8" in caplog.text
  pq.write_table(pa.table({"file": ["b.jpg"], "caption": latin}), folder / "captions.parquet")
  with pytest.raises(ValueError, match=r"captions\.parquet, column 'caption', is not UTF-8"):
    FolderSource(folder)
