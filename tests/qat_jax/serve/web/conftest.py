import pytest
from playwright.sync_api import sync_playwright

from tests.qat_jax.serve.web.browsers import CHROMIUM


@pytest.fixture(scope="module")
def browser():
  with sync_playwright() as playwright:
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    found = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
    yield found
    found.close()
