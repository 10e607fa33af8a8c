"""The documentation site: it builds without a warning, asks for nothing from elsewhere, and fits a phone."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser_cases import MISSING, REASON, make_driver, resize

pytest.importorskip("sphinx")
pytest.importorskip("myst_parser")
pytest.importorskip("furo")

ROOT = Path(__file__).parents[2]
PAGES = ("index", "agents/ppo", "targets/index", "api/agents", "leaderboard", "environments/DxMIDenoise-v0")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; the build itself is the first test."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", ROOT / "docs", folder]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_every_page_is_built(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert all((site / page).with_suffix(".html").is_file() for page in pages)


@pytest.mark.slow
def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for tag in re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", text):
            assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", tag), f"{page}: {tag}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.slow
def test_links_between_pages_lead_somewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for link in re.findall(r'href="([^"#?]+)', page.read_text(encoding="utf-8")):
            assert "://" in link or (page.parent / link).resolve().exists(), f"{page}: {link}"


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import dxmi_rl
    from dxmi_rl import agents, anomaly, diffusion, envs, evaluation, irl, targets, tasks

    for module in (agents, anomaly, diffusion, envs, evaluation, irl, targets, tasks):
        text = (site / "api" / f"{module.__name__.rpartition('.')[2]}.html").read_text(encoding="utf-8")
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value) and getattr(value, "__doc__", None):
                assert f'id="{module.__name__}.{name}"' in text, name
    index = (site / "api" / "index.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in index for name in dxmi_rl.__all__ if not name.startswith("_"))


# In a browser ---------------------------------------------------------------------------------------------------------


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The site on a local server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if MISSING:
        pytest.skip(REASON)
    driver = make_driver(tmp_path_factory.mktemp("profile"))
    yield driver
    driver.quit()


def requested(browser: Any) -> list[str]:
    """Addresses that the pages since the last call asked for."""
    return re.findall(r'"Network.requestWillBeSent".*?"url":"([^"]+)"', str(browser.get_log("performance")))


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("page", PAGES)
def test_pages_fit_and_ask_nobody_else(page: str, width: int, browser: Any, address: str) -> None:
    resize(browser, width)
    browser.get(f"{address}/{page}.html")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return [...document.images].every(one => one.naturalWidth > 0)")
    asked = requested(browser)
    assert asked and all(url.startswith((address, "data:", "about:", "chrome")) for url in asked), asked
    messages = [entry for entry in browser.get_log("browser") if "favicon" not in str(entry)]
    assert all(entry["level"] != "SEVERE" for entry in messages), messages


@pytest.mark.browser
def test_search_finds_pages(browser: Any, address: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(f"{address}/search.html?q=funnel")
    page = (By.CSS_SELECTOR, 'ul.search li a[href*="targets/funnel10.html"]')  # results come one after the other
    assert WebDriverWait(browser, 20).until(lambda driver: driver.find_elements(*page))


@pytest.mark.browser
def test_code_has_copy_buttons_and_the_menu_opens_on_a_phone(browser: Any, address: str) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    resize(browser, 390)
    browser.get(f"{address}/quickstart.html")
    code = browser.find_elements(By.CSS_SELECTOR, "div.highlight")
    assert len(code) >= 7 and len(browser.find_elements(By.CSS_SELECTOR, "button.copybtn")) == len(code)
    drawer = browser.find_element(By.CSS_SELECTOR, ".sidebar-drawer")
    assert drawer.rect["x"] < 0
    browser.find_element(By.CSS_SELECTOR, "label.nav-overlay-icon").click()
    WebDriverWait(browser, 20).until(lambda _: drawer.rect["x"] == 0)
    links = [link.text for link in browser.find_elements(By.CSS_SELECTOR, ".sidebar-tree > ul > li > a")]
    assert {"Quickstart", "Targets", "Agents", "Leaderboard", "API"} <= set(links)
