import pytest
from playwright.sync_api import sync_playwright

from tests.qat_jax.serve.web.browsers import CHROMIUM
from tests.qat_jax.serve.web.clients import client_of


@pytest.fixture(scope="module")
def client(served):
  return client_of(served)


@pytest.fixture(scope="module")
def browser():
  with sync_playwright() as playwright:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield found
    found.close()


@pytest.fixture
def page(browser, address):
  """A page, which must leave nothing in the console."""
  context = browser.new_context(viewport={"width": 1280, "height": 800})
  page, said = context.new_page(), []
  page.set_default_timeout(15_000)
  page.on("console", lambda message: said.append(message.text))
  page.on("pageerror", lambda error: said.append(str(error)))
  page.expected = said
  page.goto(address)
  page.wait_for_selector("#examples button")
  yield page
  context.close()
  assert said == []
