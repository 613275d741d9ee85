"""The forms at /docs, sent as they are with nothing but a photo chosen."""

import pytest
from playwright.sync_api import Browser

from model import samples

pytestmark = pytest.mark.e2e


def test_a_form_needs_nothing_but_a_photo(
    browser: Browser, server_url: str, subtests: pytest.Subtests
) -> None:
    page = browser.new_page()
    page.goto(server_url + "/docs")
    for operation in ("reconstruct", "reconstruct_batch", "embed"):
        with subtests.test(operation=operation):
            block = page.locator(f".opblock[id$='-{operation}']")
            block.locator(".opblock-summary-control").click()
            block.locator(".try-out__btn").click()
            block.locator("input[type=file]").first.set_input_files(samples.FOLDER / "cat.jpg")
            with page.expect_response(lambda response: response.request.method == "POST") as sent:
                block.locator("button.execute").click()
            assert sent.value.status == 200, sent.value.text()
    page.close()
