"""The documentation as a site: every link leads somewhere, nothing is fetched from elsewhere."""

import html.parser
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Element to the attribute whose address a browser fetches by itself."""


class _Page(html.parser.HTMLParser):
    """What a page links to, what it fetches, and what can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in FETCHED and FETCHED[tag] in values:
            self.fetched.append(values[FETCHED[tag]])
        if "id" in values:
            self.ids.add(values["id"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("site")
    pages, out = made / "pages", made / "html"
    subprocess.run([ROOT / "hack" / "stage_site.sh", pages], check=True)
    config = (ROOT / "mkdocs.yml").read_text()
    config = re.sub(r"(?m)^docs_dir: .*", f"docs_dir: {pages}", config)
    (made / "mkdocs.yml").write_text(config)
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    argv = [*mkdocs, "-f", str(made / "mkdocs.yml"), "-d", str(out)]
    built = subprocess.run(argv, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return out


def test_every_link_leads_to_a_page_a_file_or_an_anchor(site: Path) -> None:
    pages = {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > 90
    broken = []
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or link in ("", "#"):
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            known = not address.fragment or target not in pages
            if not target.is_file() or not (known or address.fragment in pages[target].ids):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def test_a_page_fetches_nothing_from_another_host(site: Path) -> None:
    for path in site.rglob("*.html"):
        assert [address for address in _Page(path).fetched if urlsplit(address).netloc] == [], path
    for sheet in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?https?:|@import", sheet.read_text()) == [], sheet
