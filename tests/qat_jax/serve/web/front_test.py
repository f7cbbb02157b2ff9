"""The web front end that clip-retrieval publishes, in a real browser, against our server: text, picture, scrolling."""

import functools
import http.server
import importlib.metadata
import threading

import pytest

from qat_jax.serve.limits import Limits
from qat_jax.serve.web.app import create
from qat_jax.serve.web.server import in_thread
from qat_jax.serve.web.state import State
from tests.processes import free_port
from tests.qat_jax.serve.web.browsers import MARKS, until

pytestmark = MARKS
SHOWN = "[...document.querySelector('clip-front').shadowRoot.querySelectorAll('#products figure')]"
LOADED = f"{SHOWN}.every(one => one.querySelector('.pic').naturalWidth > 0)"


@pytest.fixture(scope="module")
def front():
  """The address of the front end: its own files, from a server of files."""
  try:
    files = importlib.metadata.files("clip-retrieval") or []
  except importlib.metadata.PackageNotFoundError:
    pytest.skip("clip-retrieval is not there: pip install --no-deps clip-retrieval==2.45.0")
  page = next(file for file in files if file.name == "index.html" and "build" in file.parts).locate()

  class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(page.parent)))
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()
  thread.join(10)
  server.server_close()


@pytest.fixture(scope="module")
def back(served, front):
  state, port = State(Limits(seconds=120)), free_port()
  state.service = served
  with in_thread(create(state, None, frozenset({"127.0.0.1"}), (front,)), port):
    yield f"http://127.0.0.1:{port}"
  state.queue.close(10)


@pytest.fixture
def page(browser, front, back):
  context = browser.new_context(viewport={"width": 1280, "height": 900})
  page, said = context.new_page(), []
  page.set_default_timeout(15_000)
  page.on("pageerror", lambda error: said.append(str(error)))
  ours = lambda answer: answer.status >= 400 and answer.url.startswith(back)  # of its own files it lacks some
  page.on("response", lambda answer: said.append(f"{answer.status} {answer.url}") if ours(answer) else None)
  page.on("requestfailed", lambda request: said.append(request.url) if request.url.startswith(back) else None)
  page.goto(f"{front}/?back={back}&index=plain")
  until(page, "document.querySelector('clip-front')?.indices?.length === 2")
  yield page
  context.close()
  assert said == []


def shown(page):
  until(page, f"{SHOWN}.length > 0 && {LOADED}")
  return page.evaluate(f"{SHOWN}.map(one => one.querySelector('figcaption').innerText.trim())")


def test_its_page_searches_by_text_and_reads_on(page):
  page.fill("#searchBar", "a red box")
  page.press("#searchBar", "Enter")
  captions = shown(page)
  assert len(captions) == 36 and captions[:12] == ["a red box"] * 12
  page.get_by_label("Display similarities").check()
  until(page, f"{SHOWN}[0].querySelector('p')?.innerText.length === 6")
  page.select_option("select >> nth=0", "adapted")
  until(page, "location.search.includes('index=adapted')")


def test_its_page_searches_by_a_picture_and_by_a_click(page, shop):
  page.set_input_files("#filechooser", str(shop / "pictures/4.png"))
  assert shown(page)[:12] == ["a green box"] * 12
  page.hover("figure >> nth=30")  # a picture of another colour, whose buttons are shown then
  page.click("figure >> nth=30 >> .subImageSearch")
  until(page, f"{SHOWN}[0].querySelector('figcaption').innerText.trim() !== 'a green box'")
  page.hover("figure >> nth=0")
  page.click("figure >> nth=0 >> .subTextSearch")
  until(page, "document.querySelector('clip-front').text.endsWith(' box')")


def test_what_is_not_shown_at_first_is_fetched_when_one_scrolls(page):
  page.evaluate("document.querySelector('clip-front').numImages = 4")
  page.set_viewport_size({"width": 600, "height": 300})
  page.fill("#searchBar", "a blue box")
  page.press("#searchBar", "Enter")
  until(page, f"{SHOWN}.length === 36 && {LOADED}")
