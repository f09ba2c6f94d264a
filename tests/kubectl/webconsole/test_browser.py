"""The console as a person has it: a real Chromium clicks through it."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from tests.kubectl.webconsole.conftest import COLOUR, Served, served
from tests.polling import until_async
from tests.streaming.fakes.api_server import POD_PATH

PATIENCE = 60_000.0
"""Milliseconds; a loaded machine is slow."""
PICTURE = Path(__file__).parents[3] / "docs/pictures/webconsole.png"
PIXEL = """() => [...document.querySelector('canvas').getContext('2d')
    .getImageData(9, 9, 1, 1).data.slice(0, 3)]"""


def _browse(directory: Path, work: Callable[[Page, Served], Awaitable[None]]) -> None:
    async def session() -> None:
        async with served(directory) as console, async_playwright() as programs:
            browser = await programs.chromium.launch(
                executable_path="/usr/bin/chromium", args=["--no-sandbox"]
            )
            page = await browser.new_page()
            page.set_default_timeout(PATIENCE)
            expect.set_options(timeout=PATIENCE)
            faults: list[Any] = []
            page.on("pageerror", lambda error: faults.append(error))
            page.on("dialog", lambda dialog: faults.append(dialog))
            await page.goto(console.address)
            await work(page, console)
            assert faults == []
            await browser.close()

    asyncio.run(session())


async def _choose(page: Page, view: str) -> None:
    await page.get_by_role("button", name="vm", exact=True).click()
    await page.get_by_role("button", name=view, exact=True).click()


def test_the_list_has_vm_pods_with_their_state(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        row = page.locator("#pods tr")
        await expect(row).to_have_count(1)
        await expect(row).to_contain_text("Running")
        assert "token" not in page.url

    _browse(tmp_path, work)


def test_log_and_events_are_text_whatever_is_in_them(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        await _choose(page, "Log")
        await expect(page.locator("pre")).to_have_text("<b>booting</b>\n")
        with console.log.open("a") as log:
            log.write("2026-01-01T00:00:01Z stdout F <script>alert(1)</script>\n")
        await expect(page.locator("pre")).to_contain_text("<script>alert(1)</script>")
        await page.get_by_role("button", name="Events").click()
        await expect(page.locator("#view td").last).to_have_text("<img src=x onerror=alert(1)>")

    _browse(tmp_path, work)


def test_the_console_is_typed_on(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    async def work(page: Page, console: Served) -> None:
        await page.set_viewport_size({"width": 1000, "height": 560})
        await _choose(page, "Console")
        await expect(page.locator(".xterm-rows")).to_contain_text("console of vm-1")
        await page.keyboard.type("hello")
        await expect(page.locator(".xterm-rows")).to_contain_text("HELLO")
        if request.config.getoption("--refresh-golden"):
            await page.screenshot(path=PICTURE)

    _browse(tmp_path, work)


def test_the_screen_is_seen_and_typed_on(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        await _choose(page, "Screen")
        await expect(page.locator("#said")).to_contain_text("Connected")
        await page.wait_for_function(f"({PIXEL})().join() === '{','.join(map(str, COLOUR))}'")
        await page.keyboard.press("a")
        await until_async(lambda: ord("a") in console.screen.keys, "the key", PATIENCE / 1000)

    _browse(tmp_path, work)


def test_a_vm_without_a_screen_says_so_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        console.screen.absent = True
        await _choose(page, "Screen")
        await expect(page.locator("#said")).to_contain_text("the VM has no screen")
        await page.get_by_role("button", name="Log").click()
        await expect(page.locator("pre")).to_contain_text("booting")

    _browse(tmp_path, work)


def test_two_consoles_of_one_vm_go_on_when_a_browser_goes_away(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        browser = page.context.browser
        assert browser
        other = await browser.new_page()
        await other.goto(console.address)
        for one in (page, other):
            await _choose(one, "Console")
            await expect(one.locator("#said")).to_contain_text("All who are attached")
            await expect(one.locator(".xterm-rows")).to_contain_text("console of vm-1")
        await page.keyboard.type("hello")
        for one in (page, other):
            await expect(one.locator(".xterm-rows")).to_contain_text("HELLO")
        await other.close()
        await until_async(
            lambda: len(console.serial.readers) == 1, "the other's end", PATIENCE / 1000
        )
        await page.keyboard.type("again")
        await expect(page.locator(".xterm-rows")).to_contain_text("AGAIN")

    _browse(tmp_path, work)


def test_what_a_user_has_no_right_to_is_said_where_it_would_be(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        console.api.forbidden |= {"/attach", "/portforward", "/log", "/events"}
        said = page.locator("#said")
        for view, path in (
            ("Console", "attach"),
            ("Screen", "portforward"),
            ("Log", "log"),
            ("Events", "events"),
        ):
            await _choose(page, view)
            await expect(said).to_have_text(f"No {view.lower()}: {path} is forbidden: ask")
        console.api.forbidden |= {"/pods"}
        await expect(page.locator("#problem")).to_contain_text("pods is forbidden: ask")
        await page.get_by_role("button", name="New VM").click()
        await page.get_by_label("Name").fill("new")
        await page.get_by_label("Image").fill("virtlet.cloud/tiny")
        await expect(page.get_by_label("Manifest")).to_have_value(re.compile("virtlet.cloud/tiny"))
        await page.get_by_role("button", name="Start").click()
        await expect(page.locator("#refused")).to_contain_text("pods is forbidden: ask")
        console.api.forbidden.clear()
        await _choose(page, "Console")
        await expect(said).to_contain_text("Attached")
        await expect(page.locator("#problem")).to_have_text("")

    _browse(tmp_path, work)


def test_a_vm_without_network_figures_or_events_has_all_else(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        del console.api.documents[POD_PATH]["status"]["podIP"]
        for path, document in console.api.documents.items():
            if path.endswith("/events") or "metrics" in path:
                document["items"] = []
        await page.reload()
        await expect(page.locator("#pods td")).to_have_text(["vm", "Running", "0", *[""] * 5])
        await _choose(page, "Events")
        await expect(page.locator("#said")).to_have_text("No events.")
        await _choose(page, "Console")
        await expect(page.locator(".xterm-rows")).to_contain_text("console of vm-1")
        await _choose(page, "Screen")
        await expect(page.locator("#said")).to_contain_text("Connected")
        await _choose(page, "Log")
        await expect(page.locator("pre")).to_contain_text("booting")

    _browse(tmp_path, work)


def test_a_vm_is_started_from_the_form_with_its_manifest_beside_it(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        await page.get_by_role("button", name="New VM").click()
        await page.get_by_label("Name").fill("vm")
        await page.get_by_label("Image").fill("virtlet.cloud/tiny")
        await page.get_by_label("Memory").fill("320Mi")
        await page.get_by_label("SSH keys").fill("ssh-ed25519 AAAA me")
        manifest = page.get_by_label("Manifest")
        await expect(manifest).to_have_value(re.compile("memory: 320Mi"))
        await expect(manifest).to_have_value(re.compile("VirtletSSHKeys: ssh-ed25519 AAAA me"))
        await page.get_by_role("button", name="Start").click()
        await expect(page.locator("#refused")).to_contain_text("already exists")
        await page.get_by_label("Name").fill("new")
        await expect(manifest).to_have_value(re.compile("name: new"))
        await page.get_by_role("button", name="Start").click()
        await expect(page.locator("#form")).to_be_hidden()
        (pod,) = console.api.created
        assert pod["metadata"]["name"] == "new"
        assert pod["spec"]["containers"][0]["resources"] == {
            "limits": {"cpu": "1", "memory": "320Mi"}
        }

    _browse(tmp_path, work)


def test_figures_are_plotted(tmp_path: Path) -> None:
    async def work(page: Page, console: Served) -> None:
        figures = page.locator("#pods td.figures")
        await expect(figures.first).to_have_text("250m")
        await expect(figures.last).to_have_text("128Mi")
        await expect(page.locator("#pods polyline")).to_have_count(2)

    _browse(tmp_path, work)
