"""The claims of every paper: where they come from, and that the paper's own numbers make them."""

import importlib
import json
import pkgutil
import re
from pathlib import Path

import pandas as pd
import pytest

from kdnotes import papers
from kdnotes.results import CLAIM_SOURCES, cited_differences, reported

SLUGS = sorted(module.name for module in pkgutil.iter_modules(papers.__path__))
NOTEBOOKS = Path(__file__).parents[2] / "nbs" / "papers"


def every_claim(slug):
    """The claims of all profiles and data sets of a paper."""
    paper = importlib.import_module(f"kdnotes.papers.{slug}")
    kinds = [(profile, {}) for profile in paper.Config.PROFILES]
    kinds += [(profile, {"dataset": dataset}) for profile, dataset in paper.Config.DATASETS]
    return [(profile, more, claim) for profile, more in kinds for claim in paper.claims(paper.Config.profile(profile, **more))]


@pytest.mark.parametrize("slug", SLUGS)
def test_a_claim_of_the_paper_is_found_among_its_reported_numbers_and_holds_there(slug):
    theirs, wrong = reported(slug), []
    for profile, more, claim in every_claim(slug):
        assert claim.source in CLAIM_SOURCES
        if claim.source == "paper":
            gaps = cited_differences(claim, theirs)               # raises where table or rows are not there
            holds = gaps.mean() >= claim.threshold if claim.kind == "at least" else gaps.mean() > 0
            wrong += [] if holds else [f"{profile} {more}: {claim.name} ({gaps.mean():+.2f} by the paper)"]
    assert not wrong, "not what the paper's own numbers say: " + "; ".join(dict.fromkeys(wrong))


@pytest.mark.parametrize("slug", SLUGS)
def test_names_of_claims_are_their_own(slug):
    seen = {}
    for profile, more, claim in every_claim(slug):
        names = seen.setdefault((profile, more.get("dataset", "")), [])
        assert claim.name not in names, (profile, more, claim.name)
        names.append(claim.name)


def after_the_verdicts(slug):
    """The cells of a notebook from the one on that judges."""
    cells = json.loads((NOTEBOOKS / f"{slug}.ipynb").read_text(encoding="utf-8"))["cells"]
    start = next(i for i, cell in enumerate(cells) if re.search(r"experiment\.judge\(", "".join(cell["source"])))
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells[start:]]


@pytest.mark.parametrize("slug", SLUGS)
def test_closing_sentences_come_from_the_frame(slug):
    """What is printed after the verdicts is made from them; the prose there tells how to read, and names no winner."""
    cells = after_the_verdicts(slug)
    assert any(kind == "code" and "conclude(" in text for kind, text in cells)
    prose = " ".join(text for kind, text in cells if kind == "markdown")
    typed = re.findall(r"\b(?:beats?|outperforms?|wins?|is better|by far|clearly)\b", prose)
    assert not typed, f"{slug}: typed in before the numbers: {', '.join(typed)}"


@pytest.mark.parametrize("slug", SLUGS)
def test_a_place_is_kept_for_the_result_card(slug):
    cells = json.loads((NOTEBOOKS / f"{slug}.ipynb").read_text(encoding="utf-8"))["cells"]
    place = next(i for i, cell in enumerate(cells) if cell["cell_type"] == "code" and "card_place()" in "".join(cell["source"]))
    sections = [i for i, cell in enumerate(cells) if "".join(cell["source"]).startswith("## ")]
    assert place < sections[1]                                    # after the problem, before anything else


@pytest.mark.parametrize("slug", SLUGS)
def test_the_cast_of_the_figures_is_in_the_tables(slug):
    """The proposed method and its nearest rival have colours of their own: under the names that they have in the numbers."""
    named = re.search(r'plots\.cast\(\\"([^"]+)\\", \\"([^"]+)\\"', (NOTEBOOKS / f"{slug}.ipynb").read_text())
    assert named, "the notebook says plots.cast(proposed, rival)"
    results = NOTEBOOKS.parents[1] / "results" / slug / "results.csv"
    if not results.is_file():
        pytest.skip(f"no demo of {slug} is published")
    assert set(named.groups()) <= set(pd.read_csv(results).method)
