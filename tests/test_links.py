"""Every link of the README, the notebooks, the published results and the report leads somewhere; the network is not asked."""
import html.parser
import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from kdnotes.report.links import change_links, moved, relinked

ROOT = Path(__file__).parents[1]
BOOKS = sorted(p for name in ("nbs", "results") for p in (ROOT / name).rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
PAGES = [*BOOKS, *sorted(ROOT.glob("*.md"))]


class Page(html.parser.HTMLParser):
    """Links and anchors of a page of HTML."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.anchors = [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.links += [found[name] for name in ("href", "src") if found.get(name)]
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}


def markdown_of(path: Path) -> str:
    """The Markdown of a file: a notebook's cells, and what its outputs show as Markdown."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = [output.get("data", {}).get("text/markdown", "") for cell in cells for output in cell.get("outputs", ())]
    return "\n\n".join("".join(text) for text in [*(cell["source"] for cell in cells if cell["cell_type"] == "markdown"), *shown])


def links_of(text: str) -> list[str]:
    found = []
    change_links(text, lambda target: found.append(target) or target)
    return found


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings, as JupyterLab (spaces to hyphens) and code-hosting sites (small letters, no signs) make them."""
    if path.suffix == ".html":
        return Page(path.read_text(encoding="utf-8")).anchors
    text = markdown_of(path)
    headings = re.findall(r"^#{1,6} +(.+?)\s*$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    plain = [re.sub(r"[*`]", "", heading) for heading in headings]
    return {h.replace(" ", "-") for h in plain} | {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in plain} | Page(text).anchors


def dead(path: Path, targets: list[str]) -> Iterator[str]:
    """Those of the `targets` that lead nowhere from the file `path`."""
    for target in targets:
        if re.match(r"[A-Za-z][\w+.-]*:", target):                              # an address, a data URI
            continue
        name, _, anchor = target.partition("#")
        place = path.parent / unquote(name) if name else path
        if name.startswith("/") or not place.exists():
            yield target
        elif anchor and place.is_file() and unquote(anchor) not in anchors_of(place):
            yield target


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(path):
    assert not list(dead(path, links_of(markdown_of(path))))


@pytest.mark.parametrize("path", [p for p in BOOKS if p.is_relative_to(ROOT / "results")], ids=lambda p: p.parent.relative_to(ROOT).as_posix())
def test_published_notebooks_show_no_links_in_html_that_lead_nowhere(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shown = ["".join(output.get("data", {}).get("text/html", "")) for cell in cells for output in cell.get("outputs", ())]
    assert not [target for text in shown for target in dead(path, Page(text).links)]


def test_the_index_leads_to_every_live_paper_and_every_example():
    found = set(links_of(markdown_of(ROOT / "nbs" / "index.ipynb")))
    wanted = {p.relative_to(ROOT / "nbs").as_posix() for folder in ("papers", "examples") for p in (ROOT / "nbs" / folder).glob("*.ipynb")}
    assert wanted <= found


def test_the_walk_finds_what_is_dead(tmp_path):
    (tmp_path / "there.md").write_text("# A part: `x`\n\n<a id='own'></a>")
    text = ("[a](there.md) [b](gone.md) [c](there.md#a-part-x) [d](there.md#gone) [![e](gone.png)](there.md) [f](#A-part:-x)\n\n"
            "[g]: gone2.md\n\n<img src='gone3.png'> `[h](code.md)` [i](https://x.org) [j](there.md#own) [`k`](gone4.md 'K')")
    (tmp_path / "page.md").write_text(text)
    assert set(dead(tmp_path / "page.md", links_of(text))) == {"gone.md", "there.md#gone", "gone.png", "#A-part:-x", "gone2.md", "gone3.png", "gone4.md"}


# --- how links are rewritten ---

@pytest.fixture
def clone(tmp_path):
    for name in ("nbs/papers/toy.ipynb", "nbs/train.ipynb", "nbs/a b.ipynb", "runs/toy/demo/results.csv", "results/toy/notebook.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize("target, expected", [
    ("../train.ipynb", "../../../nbs/train.ipynb"), ("../train.ipynb#the-loop", "../../../nbs/train.ipynb#the-loop"),
    ("toy.ipynb", "../../../nbs/papers/toy.ipynb"), ("../a%20b.ipynb", "../../../nbs/a%20b.ipynb"), ("../a b.ipynb", "../../../nbs/a%20b.ipynb"),
    ("../../../nbs/train.ipynb", "../../../nbs/train.ipynb"), ("#part", "#part"), ("https://x.org/../train.ipynb", "https://x.org/../train.ipynb"),
    ("/train.ipynb", "/train.ipynb"), ("mailto:a@b.org", "mailto:a@b.org"), ("gone.ipynb", "gone.ipynb"), ("..", "../../../nbs"),
])
def test_links_of_a_paper_lead_on_from_its_run(clone, target, expected):
    papers, run = clone / "nbs" / "papers", clone / "runs" / "toy" / "demo"
    once = moved(target, [papers], run)
    assert once == expected and moved(once, [papers], run) == expected


def test_what_is_not_published_leaves_its_words(clone):
    run, here = clone / "runs" / "toy" / "demo", clone / "results" / "toy"
    text = "[a](../../../nbs/train.ipynb), [b](results.csv), ![c](gone.png), [d](https://x.org), `[e](results.csv)`, $E[f](x)$"
    book = {"cells": [{"cell_type": kind, "source": source} for kind, source in (("markdown", text), ("code", text), ("markdown", [text, "\n", "[f](../train.ipynb)"]))]}
    new = relinked(book, [run, clone / "nbs" / "papers"], here, within=[clone / "nbs"])
    kept = "[a](../../nbs/train.ipynb), b, c, [d](https://x.org), `[e](results.csv)`, $E[f](x)$"
    assert [cell["source"] for cell in new["cells"]] == [kept, text, [f"{kept}\n", "[f](../../nbs/train.ipynb)"]]
    assert book["cells"][0]["source"] == text


@pytest.mark.parametrize("book", [pytest.param(p, id=p.relative_to(ROOT).as_posix()) for p in BOOKS])
def test_no_picture_stands_twice_on_a_page(book):
    cells = json.loads(book.read_text(encoding="utf-8"))["cells"]
    shown = [(cell["id"], "".join(output["data"]["image/png"])) for cell in cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})]
    first = {}
    for place, (cell, picture) in enumerate(shown):
        assert first.setdefault(picture, place) == place, f"cell {cell} shows a picture once more"
