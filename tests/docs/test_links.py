"""Links and pictures of README.md, CONTRIBUTING.md and docs/ lead somewhere; no page names the path of a machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OUTSIDE = re.compile(r"https://(arxiv\.org/abs/([a-z-]+/\d{7}|\d{4}\.\d{4,5})|github\.com/\S+|keepachangelog\.com/\S+)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```|``.*?``|`[^`]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub and MyST give to the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = without_code(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            assert OUTSIDE.fullmatch(link), link
            continue
        path, _, anchor = link.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link
    rest = re.sub(r"\]\([^)\s]+\)", "", text)
    assert "http" not in rest, "a bare address"
    assert not re.search(r"\]\s*\(\s", text), "a link with a space"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_papers_are_links(page: Path) -> None:
    assert "arXiv" not in re.sub(r"\[[^]]*\]\([^)\s]+\)", "", without_code(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_path_of_a_machine(page: Path) -> None:
    assert not re.search(r"(?<![\w.~/-])/(home|root|tmp|work|mnt|Users)/", page.read_text(encoding="utf-8"))


def test_pictures_of_docs_are_used() -> None:
    used = {
        (page.parent / link).resolve()
        for page in PAGES
        for link in re.findall(r"\]\(([^)\s]+\.(?:png|gif))\)", page.read_text(encoding="utf-8"))
    }
    docs = ROOT / "docs"
    assert {*docs.glob("pictures/*"), *docs.glob("targets/*.png")} == used
