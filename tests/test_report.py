"""kdnotes.report: the page, its summary, and what is published in the repository."""
import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt

from kdnotes import cli
from kdnotes.batch import terminal
from kdnotes.report import page as report
from kdnotes.report import publish as publishing
from kdnotes.report import reading
from kdnotes.results import Claim, Results, compare, judge
from kdnotes.runs import digest, open_run, state

EVIL = "<script>alert('x')</script>"


def png(width=40, height=30, seed=0):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3),
                                                         dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def book(title="Toy: a study", *, outputs=(), source="1 + 1", status="finished", reason=""):
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\n> Soft labels teach | more.\n\nLong story."),
             nbformat.v4.new_code_cell(source, outputs=list(outputs))]
    metadata = {"kdnotes": {"status": status, "reason": reason},
                "papermill": {"input_path": "/root/nbs/toy.ipynb",
                              "parameters": {"profile": "demo", "seeds": "0-2", "out": "x", "device": "auto",
                                             "overrides": {"lr": 0.1}}}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def make_run(base, slug="toy", profile="demo", seed_count=3, method="KD", figures=True, caption="What KD adds",
             notebook=None, **parameters):
    rows = Results(slug, profile)
    for seed in range(seed_count):
        rows.add("Table 1", "digits", "CE", "accuracy", 80 + 2 * seed, seed)
        rows.add("Table 1", "digits", method, "accuracy", 82.1 + 2 * seed + 0.1 * (seed % 2), seed)
    run = open_run(slug, {"profile": profile, "dataset": "digits", **parameters}, base=base, seeds=range(seed_count),
                   device="cpu", precision="32-true", config={"lr": 0.1})
    if figures:
        fig, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, 1])
        run.save_figure(fig, "curve", caption)
        plt.close(fig)
        run.save_table(compare(rows.frame(), None, "Table 1"), "first", f"Table 1 of {method}")
    nbformat.write(notebook or book(f"{slug.upper()}: a study"), run.path / "notebook.ipynb")
    claims = judge([Claim("better", f"{method} helps", method, "CE"),
                    Claim("worse", "the other way round", "CE", method)], rows)
    return run.finish(rows, claims, data={"digits": "0123456789abcdef" * 4})


LAYOUT = {"table": "Table 1", "columns": ["metric"], "repetitions": "seeds", "beside": False}


def note(path, name, entry):
    """Put an entry into the captions of the tables of a run, and sign them where they are signed."""
    captions = path / "tables" / "captions.json"
    captions.write_text(json.dumps(json.loads(captions.read_text()) | {name: entry}))
    sign(path)


def sign(path):
    """Let the manifest sign everything in the run folder as it is now."""
    manifest = json.loads((path / "manifest.json").read_text())
    names = [p.relative_to(path).as_posix() for p in sorted(path.rglob("*")) if p.is_file()
             and p.parent.name != "checkpoints"]
    manifest["files"] = {name: digest(path / name) for name in names
                         if name not in ("manifest.json", "notebook.ipynb", "log.txt", ".lock")}
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two papers finished (one with hostile names), one failed, one broken, one interrupted, one empty."""
    base = tmp_path_factory.mktemp("work") / "runs"
    make_run(base, "horkd")
    make_run(base, "horkd", "real")
    make_run(base, "evil", method=EVIL, caption=EVIL, notebook=book(EVIL))
    failed = open_run("ccc", {"profile": "demo", "dataset": "digits"}, base=base)
    nbformat.write(book("CCC", status="failed", reason=f"ValueError: {EVIL}"), failed.path / "notebook.ipynb")
    failed.close()
    broken = make_run(base, "dgd", figures=False)
    (broken / "results.csv").write_text("paper,table\n")
    cut = open_run("m3d", {"profile": "smoke", "dataset": "digits"}, base=base)
    (cut.path / "manifest.json").write_text("{half")
    cut.close()
    (base / "g2d" / "demo-digits-01234567").mkdir(parents=True)
    return base


class Tags(HTMLParser):
    """Checks that tags nest, and collects links, sources and visible text."""
    VOID = {"meta", "img", "br", "line", "circle", "input", "hr", "link"}

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.sources, self.ids, self.text, self.scripts = [], [], [], [], [], 0
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.links += [attrs["href"]] if "href" in attrs else []
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def page(runs):
    path = report.write_report(runs)
    assert path == runs / "report" / "index.html"
    return path


def test_the_page_is_whole_and_stands_alone(page):
    text = page.read_text(encoding="utf-8")
    tags = Tags(text)
    assert text.startswith("<!doctype html>") and 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert tags.scripts == 1 and EVIL not in text and "&lt;script&gt;" in text
    assert all(s.startswith("data:image/png;base64,") for s in tags.sources) and len(tags.sources) == 3
    assert not re.search(r"https?://|@import|url\(", text)
    for link in tags.links:
        assert link[1:] in tags.ids if link.startswith("#") else (page.parent / link).is_file(), link
    assert len(tags.ids) == len(set(tags.ids))
    png_bytes = base64.b64decode(tags.sources[0].partition(",")[2])
    assert png_bytes == next((page.parents[1] / "evil").glob("*/figures/curve.png")).read_bytes()


def test_the_page_says_what_was_found(page):
    text = " ".join(" ".join(Tags(page.read_text(encoding="utf-8")).text).split())
    for part in ("HORKD: a study", "3 finished, 4 not finished", "digits 3 seeds", "executed notebook", "better",
                 "KD helps", "+2.13", "✓ supported", "✗ not supported",
                 "Table 1 of KD", "reproduced: mean ± standard deviation over 3 seeds", "84.1 ± 2.0", "What KD adds",
                 "SHA-256", "torch 2", "digits 0123456789abcdef", "lr = 0.1",
                 "90.03†", "second hand, not read in the paper: quoted by the CRRCD paper Table V"):
        assert part in text, part
    # the weightier run first
    assert text.index("profile real") < text.index("profile demo",
                                                   text.index("HORKD: a study", text.index("profile real")))


def test_the_page_says_what_to_do_about_the_rest(page, runs):
    text = " ".join(" ".join(Tags(page.read_text(encoding="utf-8")).text).split())
    assert f"kdnotes run ccc --profile demo --seeds 0-2 -p lr 0.1 --out {runs}" in text
    assert "ValueError: <script>" in text and "failed an error ended it" in text
    assert f"kdnotes run dgd --profile demo --seeds 0-2 -p lr 0.1 --out {runs} --force" in text
    assert "results.csv: not the file that the manifest signed" in text and "damaged the command runs it anew" in text
    assert f"kdnotes run m3d --profile smoke --out {runs} --force" in text and "damaged" in text
    assert f"kdnotes run g2d --profile demo --out {runs}" in text and "absent" in text


def test_the_summary_holds_all_finished_numbers(page, runs):
    table = pd.read_csv(page.with_name("summary.csv"))
    assert len(table) == 18 and set(table["paper"]) == {"horkd", "evil"}
    assert table.columns[:2].tolist() == ["paper", "run"]
    assert set(table["run"]) == {p.name for p in runs.glob("*/*") if state(p) == "finished"}


def test_out_and_links_elsewhere(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.parent)
    path = report.write_report("runs", tmp_path / "page")
    assert all((path.parent / link).is_file() for link in Tags(path.read_text()).links if not link.startswith("#"))
    # the default folder goes without saying
    assert "kdnotes run ccc --profile demo --seeds 0-2 -p lr 0.1<" in path.read_text()


def test_no_runs_is_said_and_unfinished_ones_alone_make_a_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs in .*kdnotes run --all"):
        report.write_report(tmp_path / "none")
    open_run("toy", {"profile": "demo", "dataset": "digits"}, base=tmp_path).close()
    text = report.write_report(tmp_path).read_text()
    assert "No run has finished yet" in text and "interrupted" in text
    assert len(pd.read_csv(tmp_path / "report" / "summary.csv")) == 0


def test_tables_are_made_from_the_results_whatever_the_notebook_printed(tmp_path):
    path = make_run(tmp_path, "horkd")
    (path / "tables" / "first.csv").write_text("method,accuracy\nCE,99.9\n")
    note(path, "first", {"caption": "Table 1 of KD", "notes": ["tuned by hand"],
                         "layout": LAYOUT | {"columns": ["method"]}})
    text = report.write_report(tmp_path).read_text()
    assert "84.1 ± 2.0" in text and "99.9" not in text and ">Table 1 of KD</div>" in text and "tuned by hand" in text
    assert re.search(r"<th[^>]*>KD</th>", text)                                       # a method heads a column
    make_run(tmp_path / "plain", "horkd", figures=False)
    text = report.write_report(tmp_path / "plain").read_text()
    assert "84.1 ± 2.0" in text and ">Table 1</div>" in text and "<h3>Figures" not in text


def test_a_layout_that_the_results_do_not_fit_gives_way_to_the_plain_one(tmp_path):
    path = make_run(tmp_path, "horkd")
    note(path, "first", {"caption": "Mine", "layout": LAYOUT | {"columns": ["ipc"], "where": {"metric": "fid"}}})
    text = report.write_report(tmp_path).read_text()
    assert "84.1 ± 2.0" in text and ">Mine</div>" in text


@pytest.mark.parametrize("manifest, said", [
    ({}, "0 s"), ({"wall_s": 90.2}, "1 min 30 s"), ({"wall_s": 90, "stages": {"built": 3, "read": 0}, "stages_s": 160.0}, "1 min 30 s"),
    ({"wall_s": 90, "stages": {"built": 1, "read": 2}, "stages_s": 3700.0}, "1 min 30 s (stages read back; all took 1 h 1 min of a core)"),
    ({"wall_s": 90, "stages": {"built": 1, "read": 2}}, "1 min 30 s"), ({"wall_s": 90, "stages": [], "stages_s": 1.0}, "1 min 30 s")])
def test_a_run_that_read_stages_back_says_what_they_took(manifest, said):
    assert report.spent(manifest) == said


def test_every_number_leads_to_the_stages_that_made_it(tmp_path):
    path = make_run(tmp_path, "horkd")
    rows = pd.read_csv(path / "results.csv", dtype=str, keep_default_na=False)
    keys = [f"{'plain' if m == 'CE' else 'taught'}{s}" for m, s in zip(rows["method"], rows["seed"])]
    rows.drop(columns=["paper", "value", "profile"]).assign(stage=keys).to_csv(path / "rows.csv", index=False)
    stages = {"teacher0": {"stage": "Teacher", "fields": {"network": EVIL}, "parents": {}, "data": {"digits": "d" * 64},
                           "code": "c0de" * 16, "seconds": 12.34, "built": "2026-11-27T23:00:00+00:00",
                           "device": "cpu"}}
    stages |= {f"{name}{seed}": {"stage": "Student", "fields": {"seed": seed, "loss": name, "task": f"Set(seed={seed})", "teacher": stages["teacher0"]},
                                 "parents": {"teacher": "teacher0"},
                                 "data": {}, "code": "beef" * 16, "seconds": 3.0, "built": "",
                                 "device": {"type": "cpu"}}
               for name in ("plain", "taught") for seed in range(3)}
    stages["unused"] = {"stage": "Unused", "fields": {}}
    (path / "stages.json").write_text(json.dumps(stages))
    text = report.write_report(tmp_path).read_text()
    tags = Tags(text)
    links = re.findall(r"<a href='#([^']+)'>(8[\d.]+ ± [\d.]+)</a>", text)
    assert [number for _, number in links] == ["82.0 ± 2.0", "84.1 ± 2.0"]
    assert {link for link, _ in links} <= set(tags.ids)
    assert all(link[1:] in tags.ids for link in tags.links if link.startswith("#"))
    words = " ".join(" ".join(tags.text).split())
    assert "Teacher : network = <script>" in words and "· code c0dec0dec0dec0de" in words
    assert "12.3 s, 2026-11-27 23:00:00 UTC, cpu, data dddddddd" in words
    assert "Student : loss = taught, task = Set(seed=…) · code beefbeefbeefbeef" in words
    assert words.count("Student : ") == 2 and "Unused" not in words                  # one entry for all seeds
    made = text.index(f'id="{links[1][0]}"')
    stage = re.search(r'href="#([^"]+)">Student', text[made:])[1]
    assert text.index(f'id="{stage}"') < text.index("loss = taught") and "seed 2, 3.0 s" in words


def test_addresses_are_quoted(tmp_path):
    path = make_run(tmp_path, "horkd")
    path.rename(path.with_name("a %23#? b"))
    text = report.write_report(tmp_path).read_text()
    links = [link for link in Tags(text).links if not link.startswith("#") and link != "summary.csv"]
    assert links and all((tmp_path / "report" / unquote(link)).is_file() for link in links)


def test_a_notebook_that_failed_after_its_results_is_not_passed_over(tmp_path):
    make_run(tmp_path, notebook=book(status="failed", reason="NameError: plot"))
    assert "did not end well" in report.write_report(tmp_path).read_text() and publishing.newest_demo(tmp_path) == {}


@settings(max_examples=60)
@given(st.floats(-50, 50), st.floats(0.5, 20), st.floats(-5, 5), st.one_of(st.just(float("nan")), st.floats(-60, 60)))
def test_the_drawn_interval_keeps_its_order_on_a_scale_of_its_own(mean, half, margin, paper):
    svg = report.interval_svg(mean - half, mean + half, mean, margin, "supported", paper)
    place = lambda pattern: float(re.search(pattern, svg)[1])
    x1, x2 = place(r"class='span' x1='([\d.]+)'"), place(r"class='span' x1='[\d.]+' x2='([\d.]+)'")
    dot, zero = place(r"cx='([\d.]+)'"), place(r"class='zero' x1='([\d.]+)'")
    at = {mean - half: x1, mean: dot, mean + half: x2, 0.0: zero}
    if margin:
        at[margin] = place(r"class='margin' x1='([\d.]+)'")
    if paper == paper:
        at[paper] = place(r"translate\(([\d.]+) 11\)")
    assert ("class='margin'" in svg) == bool(margin) and ("class='paper'" in svg) == (paper == paper)
    values = sorted(at)
    assert all(at[a] <= at[b] for a, b in zip(values, values[1:]))
    assert at[values[0]] == 10 and at[values[-1]] == 190                                  # all of the width is used
    assert f"margin {margin:g}" in svg and report.interval_svg(float("nan"), 1, 1, 0, "inconclusive") == ""


@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_an_interval_of_no_width_is_drawn_where_there_is_a_scale(mean):
    assert bool(report.interval_svg(mean, mean, mean, 0.0, "supported")) == (mean != 0)


PAPER = "# T\n\n**Title of *it*.**\nAn Author, VENUE 2024, [arXiv](https://x.org).\n\n> What it *shows*."
PROBLEM = "## The problem\n\nLabels are `wrong`, $T^r$ too.\n\n> A reconstruction.\n\nSo one learns."


def executed(picture=True, late=False):
    """An executed notebook with a citation, a problem, and perhaps a picture, before its configuration or after it."""
    cell = nbformat.v4.new_code_cell("draw()", outputs=[nbformat.v4.new_output("display_data", {"image/png": png()})])
    cells = [nbformat.v4.new_markdown_cell(PAPER), nbformat.v4.new_markdown_cell(PROBLEM)]
    cells += [nbformat.v4.new_markdown_cell("## Configuration")] * late + [cell] * picture
    return nbformat.v4.new_notebook(cells=cells)


@pytest.mark.parametrize("more, pictures", [({}, 1), ({"late": True}, 0), ({"picture": False}, 0)])
def test_a_paper_opens_with_citation_abstract_method_and_result(tmp_path, more, pictures):
    make_run(tmp_path, notebook=executed(**more))
    make_run(tmp_path, profile="smoke", notebook=executed(**more))
    text = report.write_report(tmp_path).read_text()
    words = " ".join(" ".join(Tags(text).text).split())
    assert words.count("Title of it. An Author, VENUE 2024, arXiv.") == 1                 # once for a paper
    assert words.count("Labels are wrong, T^r too.") == 1 and "So one learns." in words
    assert "A reconstruction" not in words and words.count("What it shows.") == 1
    assert text.count("The method, as the notebook draws it") == pictures
    assert text.count("<div class='card'") == 2 and "Supported: better (+2.13 [" in words
    assert text.index("<div class='card'") < text.index("-claims\">Claims</h3>") < text.index("-tables\">Tables</h3>")


def test_the_contents_lead_to_every_part(page):
    text = page.read_text(encoding="utf-8")
    contents = text[text.index('<nav class="contents">'):text.index("</nav>")]
    targets = re.findall(r'href="#([^"]+)"', contents)
    ids = Tags(text).ids
    assert set(targets) <= set(ids) and len(targets) == 3 * 5                             # the one figure is in the card
    assert {t.rpartition("-")[2] for t in targets} >= {"result", "claims", "tables", "provenance"}


def test_no_figure_stands_twice(tmp_path):
    path = make_run(tmp_path)
    shutil.copy(path / "figures" / "curve.png", path / "figures" / "methods.png")
    sign(path)
    sources = Tags(report.write_report(tmp_path).read_text()).sources
    assert len(sources) == 2


def test_a_page_grows_while_a_batch_is_under_way(tmp_path):
    make_run(tmp_path, "horkd")
    text = report.write_report(tmp_path, waiting=["m3d (demo, <mnist>)", "dance"]).read_text()
    assert "This page grows." in text and "m3d (demo, &lt;mnist&gt;), dance" in text and "location.reload" in text
    Tags(text)
    text = report.write_report(tmp_path).read_text()
    assert "This page grows." not in text and "location.reload" not in text


def test_claims_stand_by_source_with_what_is_open(tmp_path):
    rows = Results("horkd", "real")
    for seed, gap in enumerate((1.0, 2.0, 0.2)):
        rows.add("Table 1", "digits", "CE", "accuracy", 80, seed)
        rows.add("Table 1", "digits", "KD", "accuracy", 80 + gap, seed)
    claims = judge([Claim("mine", "ours alone", "KD", "CE"), Claim("attested", "", "CE", "KD", source="sheet", margin=1.0, kind="at least")], rows)
    run = open_run("horkd", {"profile": "real", "dataset": "digits"}, base=tmp_path, seeds=range(3), device="cpu", precision="32-true")
    nbformat.write(executed(), run.path / "notebook.ipynb")
    run.finish(rows, claims, data={})
    text = report.write_report(tmp_path).read_text()
    words = " ".join(" ".join(Tags(text).text).split())
    assert words.index("Claims attested for the paper") < words.index("Claims of ours")
    assert "about 6 seeds" in words and "margin −1" in words and "sheet ✓" in words.replace("\xa0", " ")


# ---- publishing

@pytest.fixture
def place(tmp_path):
    """A repository's root with `nbs/index.ipynb`."""
    (tmp_path / "nbs").mkdir()
    text = f"# kdnotes\n\n{publishing.BEGIN}\nold\n{publishing.END}\n\n"
    text += "[a](papers/horkd.ipynb) [b](https://x.org/y) [c](#part) ![d](../results/d.png)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text),
                                                   nbformat.v4.new_code_cell("x = 1\n\n\n\ny = d[0](1)")]),
                   tmp_path / "nbs" / "index.ipynb")
    return tmp_path


def publish(place):
    return publishing.publish(place / "runs", place / "results", place / "nbs" / "index.ipynb", place / "README.md")


def test_publishing_copies_the_newest_demo_and_refreshes_the_front_page(place):
    outputs = [nbformat.v4.new_output("stream", name="stderr", text="10%\r99%\r100% in /root/kd/x\n"),
               nbformat.v4.new_output("display_data",
                                      {"image/png": png(), "image/svg+xml": "<svg/>", "text/plain": "<Figure>"}),
               nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}})]
    make_run(place / "runs", "horkd", "real")
    make_run(place / "runs", "horkd", other=1)
    newest = make_run(place / "runs", "horkd", seed_count=4,
                      notebook=book("HORKD: a study", outputs=outputs, source="out = '/root/runs/horkd/demo'"))
    manifest = json.loads((newest / "manifest.json").read_text()) | {"finished": "2999-01-01T00:00:00+00:00"}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    real = next(p for p in (place / "runs" / "horkd").iterdir() if p.name.startswith("real"))
    evidence = publishing.publish(place / "runs", place / "results", place / "nbs" / "index.ipynb",
                                  place / "README.md", evidence=[real])
    assert evidence == [place / "results" / "cpu" / "horkd" / "digits"] and not (place / "results" / "horkd").exists()
    assert publish(place) == [place / "results" / "horkd"]
    folder = place / "results" / "horkd"
    assert sorted(p.name for p in folder.iterdir()) == ["claims.csv", "manifest.json", "notebook.ipynb", "results.csv"]
    assert state(folder) == "finished"
    assert (folder / "results.csv").read_bytes() == (newest / "results.csv").read_bytes()
    published = nbformat.read(folder / "notebook.ipynb", 4)
    nbformat.validate(published)
    code = published.cells[1]
    assert "papermill" not in published.metadata and code.source == "out = '…/demo'"
    assert code.outputs[0].text == "100% in …/x\n"
    assert set(code.outputs[1].data) == {"image/png", "text/plain"} and len(code.outputs) == 2
    assert "/root" not in (folder / "notebook.ipynb").read_text() + (folder / "manifest.json").read_text()
    readme, index = (place / "README.md").read_text(), (place / "nbs" / "index.ipynb").read_text()
    row = ("| **HORKD: a study** | Soft labels teach \\| more. | [demo run](results/horkd/notebook.ipynb) "
           "| ours ✓ 1 ✗ 1 ~ 0 | [cpu, digits: ours ✓ 1 ✗ 1 ~ 0](results/cpu/horkd/digits/notebook.ipynb) |")
    assert row in readme and "old" not in readme and "](../results/horkd/notebook.ipynb)" in index
    assert "[a](nbs/papers/horkd.ipynb) [b](https://x.org/y) [c](#part) ![d](results/d.png)" in readme
    assert "x = 1\n\n\n\ny = d[0](1)" in readme                             # code stays as it is
    before = (readme, index, (folder / "notebook.ipynb").read_bytes())
    publish(place)
    assert before == ((place / "README.md").read_text(), (place / "nbs" / "index.ipynb").read_text(),
                      (folder / "notebook.ipynb").read_bytes())
    assert publishing.readme_text(place / "nbs" / "index.ipynb") == readme


def test_the_files_of_large_data_are_gathered_in_what_is_published():
    files = {f"lfw/{name}/{name}.png": [size, f"{size:x}"] for size, name in enumerate(["a b", "c", "d"], 1)}
    data = {"People('lfw')": {"print": "ab", "files": files}, "Pictures('orl')": {"print": "cd", "files": {"orl/images.npy": [3, "f"]}}, "drawn": {"print": "e"}}
    found = publishing.gathered(data, most=2)
    ((name, (size, signed)),) = found["People('lfw')"]["files"].items()
    assert (name, size, len(signed)) == ("lfw: 3 files", 6, 64) and found["People('lfw')"]["print"] == "ab"
    assert {key: found[key] for key in list(data)[1:]} == {key: data[key] for key in list(data)[1:]}
    other = publishing.gathered({"x": {"files": files | {"lfw/c/c.png": [2, "3"]}}}, most=2)["x"]["files"][name]
    assert other[0] == size and other[1] != signed and publishing.gathered(data) == data


@pytest.mark.parametrize("written", ["../train.ipynb", "../../../nbs/train.ipynb"])
def test_links_of_published_notebooks_lead_on(place, written):
    """Written as in the paper's notebook, or as in its executed copy; of what is not published the words are left."""
    (place / "nbs" / "train.ipynb").touch()
    (place / "nbs" / "papers").mkdir()
    executed = book("HORKD: a study")
    executed.cells[0].source += f"\n\nSee [the loop]({written}#fit), [numbers](results.csv) and [more](gone.ipynb)."
    run = make_run(place / "runs", "horkd", notebook=executed)
    moved = place / "elsewhere" / "horkd" / run.name                            # evidence comes from another machine
    shutil.copytree(run, moved)
    for path in (run, moved):
        (folder,) = publishing.publish(place / "runs", place / "results", place / "nbs" / "index.ipynb", place / "README.md", evidence=[path])
        text = nbformat.read(folder / "notebook.ipynb", 4).cells[0].source
        assert text.endswith("See [the loop](../../../../nbs/train.ipynb#fit), numbers and more.")
        assert (folder / "../../../../nbs/train.ipynb").is_file()


def test_publishing_refuses_what_it_cannot_do(place):
    with pytest.raises(FileNotFoundError, match="no finished demo run"):
        publish(place)
    make_run(place / "runs", "toy")
    with pytest.raises(FileNotFoundError, match="at the root of the repository"):
        publishing.publish(place / "runs", place / "results", place / "none.ipynb", place / "README.md")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# no marks")]),
                   place / "nbs" / "index.ipynb")
    with pytest.raises(ValueError, match="results:begin"):
        publish(place)
    assert not (place / "README.md").exists()


def test_large_notebooks_are_made_small_and_stay_pictures():
    outputs = [nbformat.v4.new_output("display_data", {"image/png": png(450, 350, seed)}) for seed in range(3)]
    large = book(outputs=outputs + outputs[:1])                                  # a picture shown twice is published once
    assert len(json.dumps(large)) > 1_500_000
    text = publishing.slim_notebook(large, 600_000)
    assert len(text.encode()) <= 600_000
    small = nbformat.reads(text, 4)
    sizes = [Image.open(io.BytesIO(base64.b64decode(o.data["image/png"]))).size for o in small.cells[1].outputs]
    assert len(sizes) == 3 and all(200 <= w <= 450 and abs(w / h - 9 / 7) < 0.02 for w, h in sizes)
    untouched = book(outputs=outputs[:1])
    assert nbformat.reads(publishing.slim_notebook(untouched, 10**7),
                          4).cells[1].outputs[0].data["image/png"] == outputs[0].data["image/png"]
    with pytest.raises(ValueError, match="Toy: a study: the executed notebook takes .* may take 1,500,000"):
        publishing.slim_notebook(book(outputs=[nbformat.v4.new_output("stream", name="stdout", text="x" * 2_000_000)]))


part = st.text("abcXYZ019._-", min_size=1, max_size=8).filter(lambda t: t.strip("."))


@settings(max_examples=80)
@given(st.sampled_from(sorted(publishing.ROOTS.split("|"))), st.lists(part, min_size=1, max_size=4),
       st.sampled_from(["", "'", '"', "(", "saved to ", "file://", "=", "["]))
def test_no_machine_path_survives(root, parts, before):
    path = "/".join(["", root, *parts])
    stripped = publishing.strip_paths(f"{before}{path}, and 1/2 of it")
    assert f"/{root}/" not in stripped and stripped.endswith(f"…/{parts[-1]}, and 1/2 of it")
    assert publishing.strip_paths(stripped) == stripped


@pytest.mark.parametrize("text", ["</data> <b>x</b>", "3/opt/4", "see https://x.org/home/y",
                                  "results/horkd/notebook.ipynb", "../data/set", "ratio a/b", "/", "//"])
def test_what_is_no_machine_path_stays(text):
    assert publishing.strip_paths(text) == text


def test_titles_and_abstracts():
    assert reading.heading(book("A: b")) == "A: b" and reading.abstract(book()) == "Soft labels teach | more."
    plain = {"cells": [{"source": "# T\n\nOne sentence. Another one."}]}
    assert reading.abstract(plain) == "One sentence." and reading.heading({"cells": []}) == ""
    assert reading.read_notebook(Path("none")) == {}


# ---- one damaged run never hides another

def gone(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def garbage(path):
    path.write_bytes(np.random.default_rng(0).bytes(500))


def latin(path):
    path.write_bytes(path.read_bytes() + "é".encode("latin-1"))


def folder(path):
    path.unlink()
    path.mkdir()


def dangling(path):
    path.unlink()
    path.symlink_to("nowhere")


def itself(path):
    path.unlink()
    path.symlink_to(path.name)


def text(old, new, count=1):
    """A damage that puts `new` in the place of `old`."""
    def damage(path):
        before = path.read_text()
        assert old in before
        path.write_text(before.replace(old, new, count))
    return damage


def given(content):
    """A damage that writes `content`: bytes as they are, anything else as JSON."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def entry(*keys, value):
    """A damage that sets one entry of a file of JSON."""
    def damage(path):
        whole = part = json.loads(path.read_text())
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = value
        path.write_text(json.dumps(whole))
    return damage


def flip(place):
    """A damage that inverts one byte."""
    def damage(path):
        data = bytearray(path.read_bytes())
        data[place] ^= 255
        path.write_bytes(data)
    return damage


FILES = ("manifest.json", "results.csv", "claims.csv", "rows.csv", "stages.json", "notebook.ipynb", "tables/first.csv",
         "tables/captions.json", "figures/captions.json", "figures/curve.png", "figures/curve.svg")
DEEP = b"[" * 200_000
RESULTS = {
    "a column less": text("metric,", ""), "no number": text("80.0", ""), "NaN": text("80.0", "nan"),
    "a word": text("80.0", "high"),
    "no method": text(",CE,", ",,"), "a setting without value": text("digits,,CE", "digits,res,CE"),
    "a seed of words": text(",0,demo", ",first,demo"),
    "a huge seed": text(",0,demo", ",1e300,demo"), "a number twice": text("82.0,1", "82.0,0"),
    "a cell too many": text("80.0,0,demo", "80.0,0,demo,x"),
    "an open quote": text("80.0", '"80.0'), "NUL": given(b"\0" * 100), "lines alone": given(b"\n" * 9),
}
CLAIMS = {
    "a column less": text("verdict,", ""), "an unknown verdict": text("not supported", "maybe"),
    "an unknown kind": text("greater", "lesser"),
    "n is a word": text(",3,", ",three,"), "no n": text(",3,", ",,"), "a huge n": text(",3,", ",1e300,"),
    "half an n": text(",3,", ",2.5,"),
}
MANIFEST = {
    "a list": given([]), "a number": given(3), "null": given(None), "a text": given("x"), "deep": given(DEEP),
    "half": given(b'{"slug": '),
    "slug leads out": entry("slug", value="../../x"), "run is empty": entry("run", value=""),
    "run is a number": entry("run", value=3),
    "profile is a list": entry("profile", value=["demo"]), "dataset leads out": entry("dataset", value="../../etc"),
    "dataset is absolute": entry("dataset", value="/etc"), "dataset is an object": entry("dataset", value={}),
    "dataset has NUL": entry("dataset", value="a\0b"), "status is a list": entry("status", value=["finished"]),
    "seeds are a text": entry("seeds", value="0,1"), "seeds below 0": entry("seeds", value=[-1]),
    "seeds are true": entry("seeds", value=[True]),
    "device is a text": entry("device", value="cpu"), "type of device": entry("device", "type", value=3),
    "name of device": entry("device", "name", value=None),
    "memory is a list": entry("peak_memory", value=[1]),
    "memory is infinite": entry("peak_memory", "host", value=float("inf")),
    "versions are a list": entry("versions", value=["torch"]),
    "a version is a number": entry("versions", "torch", value=2.1),
    "data is a list": entry("data", value=["digits"]), "parameters are a text": entry("parameters", value="x=1"),
    "time is a word": entry("wall_s", value="long"), "time is NaN": entry("wall_s", value=float("nan")),
    "time is negative": entry("wall_s", value=-1),
    "time is huge": entry("wall_s", value=1e300), "time has 400 digits": entry("wall_s", value=10**400),
    "time is true": entry("wall_s", value=True),
    "finished some day": entry("finished", value="some day"),
    "finished at noon": entry("finished", value="2026-11-27Tnoon"),
    "finished is a number": entry("finished", value=5), "resumed is a text": entry("resumed", value="often"),
    "commit is a list": entry("commit", value=[]),
    "files are a list": entry("files", value=["results.csv"]), "files are none": entry("files", value={}),
    "files are null": entry("files", value=None),
    "a print is a number": entry("files", "results.csv", value=0),
    "files lead out": entry("files", "../../x", value="0" * 64),
    "files are absolute": entry("files", "/etc/hostname", value="0" * 64),
    "a file has NUL": entry("files", "a\0b", value="0" * 64),
}
CAPTIONS = {
    "a list": given([]), "a text": given("x"), "deep": given(DEEP),
    "an entry is a text": entry("first", value="Table 1"), "caption is a number": entry("first", "caption", value=1),
    "caption is an object": entry("first", "caption", value={}),
    "notes are a text": entry("first", "notes", value="note"), "a note is null": entry("first", "notes", value=[None]),
    "layout is a list": entry("first", "layout", value=[1]),
    "table is a number": entry("first", "layout", "table", value=1),
    "columns are an object": entry("first", "layout", "columns", value={}),
    "where is a text": entry("first", "layout", "where", value="x"), "a name leads out": entry("../../x", value={}),
}
FIGURES = {"a name leads out": entry("../../etc/x", value={}),
           "no such figure": entry("other", value={"caption": "x"}),
           "caption is null": entry("curve", "caption", value=None), "an entry is null": entry("curve", value=None)}
PICTURE = {"text": given(b"no picture"), "a JPEG": given(b"\xff\xd8\xff\xe0" + b"\0" * 60), "cut": cut,
           "an inverted byte": flip(60), "no size": given(b"\x89PNG\r\n\x1a\n"),
           "a huge size": flip(16), "empty": empty}
STAGES = {
    "a list": given([]), "deep": given(DEEP), "a stage is a text": entry("KD0", value="x"),
    "its class is a number": entry("KD0", "stage", value=1),
    "fields are a list": entry("KD0", "fields", value=[]),
    "parents are a list": entry("KD0", "parents", value=["CE0"]),
    "a parent is a number": entry("KD0", "parents", "teacher", value=1),
    "data is a text": entry("KD0", "data", value="digits"), "code is null": entry("KD0", "code", value=None),
    "seconds are a word": entry("KD0", "seconds", value="few"),
    "seconds are NaN": entry("KD0", "seconds", value=float("nan")),
    "built some day": entry("KD0", "built", value="some day"),
}
BOOK = {
    "a list": given([]), "a number": given(1), "null": given(None), "deep": given(DEEP),
    "cells are an object": entry("cells", value={}), "a cell is a number": entry("cells", value=[1]),
    "a source is a number": entry("cells", value=[{"source": 1}]),
    "a source of numbers": entry("cells", value=[{"source": [1]}]), "metadata is a list": entry("metadata", value=[]),
    "papermill is a text": entry("metadata", "papermill", value="x"),
    "parameters are a list": entry("metadata", "papermill", "parameters", value=[]),
    "reason is a number": entry("metadata", "kdnotes", "reason", value=1),
    "tags are a text": entry("cells", 0, "metadata", value={"tags": "x"}),
}
SIGNED = {"results.csv": RESULTS, "claims.csv": CLAIMS, "tables/captions.json": CAPTIONS,
          "figures/captions.json": FIGURES, "figures/curve.png": PICTURE,
          "stages.json": STAGES,
          "rows.csv": {"a column less": text("stage", "key"), "a cell too many": text("CE0", "CE0,x")}}
HARMLESS = [
    ("results.csv", "an infinite number", text("80.0", "inf"), True),
    ("results.csv", "a huge number", text("80.0", "1e308"), True),
    ("claims.csv", "infinite",
     lambda path: path.write_text(re.sub(r"helps,[^,]+,[^,]+", "helps,inf,-inf", path.read_text())), True),
    ("claims.csv", "no rows", lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"), True),
    ("stages.json", "no stages", given({}), True),
    ("rows.csv", "an unknown stage", text("CE0", "CE9"), True), ("notebook.ipynb", "gone", gone, False),
    ("log.txt", "gone", gone, False),
    ("notebook.ipynb", "half a character", text("M3D: a study", "M3D \\ud800: a study"), False),
    ("manifest.json", "config is a list", entry("config", value=[1]), False),
]
DAMAGES = [(name, kind.__name__, kind, False) for name in FILES
           for kind in (gone, empty, cut, garbage, latin, folder, dangling, itself)
           if (name, kind) != ("notebook.ipynb", gone)]
DAMAGES += [("manifest.json", what, damage, False) for what, damage in MANIFEST.items()]
DAMAGES += [("notebook.ipynb", what, damage, False) for what, damage in BOOK.items()]
DAMAGES += [(name, f"signed, {what}", damage, True) for name, damages in SIGNED.items()
            for what, damage in damages.items()]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run folder of HORKD and one of M3D, whole in every part, and the section of the first in the report."""
    base = tmp_path_factory.mktemp("pair") / "runs"
    for slug in ("horkd", "m3d"):
        path = make_run(base, slug)
        rows = pd.read_csv(path / "results.csv", dtype=str, keep_default_na=False)
        keys = rows["method"] + rows["seed"]
        rows.drop(columns=["paper", "value", "profile"]).assign(stage=keys).to_csv(path / "rows.csv", index=False)
        stages = {key: {"stage": "Student", "fields": {"seed": 0}, "parents": {"teacher": "CE0"},
                        "data": {"digits": "d" * 64},
                        "code": "c" * 64, "seconds": 1.0, "built": "2026-11-27T23:00:00+00:00", "device": "cpu"}
                  for key in keys}
        (path / "stages.json").write_text(json.dumps(stages))
        sign(path)
    return base, sections(report.write_report(base).read_text())["horkd"]


def sections(page):
    """The sections of a page by slug."""
    return dict(re.findall(r'(?s)<section id="([a-z0-9]+)-(.*?)</section>', page))


def damaged_pair(pair, tmp_path, name, damage, signed):
    """A copy of the pair whose second run is damaged, and that run's folder."""
    base = shutil.copytree(pair[0], tmp_path / "runs", symlinks=True)
    path = next((base / "m3d").glob("demo-*"))
    damage(path / name)
    if signed:
        sign(path)
    return base, path


@pytest.mark.parametrize("name, what, damage, signed", DAMAGES, ids=[f"{name}: {what}" for name, what, _, _ in DAMAGES])
def test_a_damaged_run_is_shown_as_damaged_beside_the_others(pair, tmp_path, capsys, name, what, damage, signed):
    base, path = damaged_pair(pair, tmp_path, name, damage, signed)
    page = report.write_report(base).read_text(encoding="utf-8")
    Tags(page)
    assert sections(page) == {"horkd": pair[1]} and "1 finished, 1 not finished" in page
    row = re.search(rf"(?s)<strong>m3d</strong><br><span class=\"soft\">{path.name}</span>(.*?)</tr>", page)[1]
    assert "<strong>damaged</strong>" in row and "--force</code>" in row
    trouble = re.search(r'<div class="soft">(.+?)</div>', row)[1]
    assert "\n" not in trouble and str(tmp_path) not in trouble and len(trouble) <= 600
    assert Path(name).name in trouble or name == "manifest.json", trouble
    assert set(pd.read_csv(base / "report" / "summary.csv")["paper"]) == {"horkd"}
    assert publishing.newest_demo(base).keys() == {"horkd"}
    assert cli.main(["list", "--runs", str(base)]) == 0
    listed = capsys.readouterr().out
    assert "1 finished" in next(line for line in listed.splitlines() if line.startswith("horkd"))
    assert " 1 " in next(line for line in listed.splitlines() if line.startswith("m3d"))


@pytest.mark.parametrize("name, what, change, signed", HARMLESS,
                         ids=[f"{name}: {what}" for name, what, _, _ in HARMLESS])
def test_what_is_odd_but_whole_is_shown(pair, tmp_path, name, what, change, signed):
    base, _ = damaged_pair(pair, tmp_path, name, change, signed)
    page = report.write_report(base).read_text(encoding="utf-8")
    Tags(page)
    assert sections(page).keys() == {"horkd", "m3d"} and sections(page)["horkd"] == pair[1]


def test_a_run_that_cannot_be_drawn_counts_as_damaged(pair, tmp_path, monkeypatch):
    base, _ = damaged_pair(pair, tmp_path, "log.txt", gone, False)
    monkeypatch.setattr(report, "provenance", lambda run: {} if run.slug == "horkd" else 1 / 0)
    page = report.write_report(base).read_text(encoding="utf-8")
    assert sections(page).keys() == {"horkd"} and "ZeroDivisionError: division by zero" in page


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", [*FILES, "tables", "figures"])
def test_what_may_not_be_read_is_damage_too(pair, tmp_path, name):
    base, path = damaged_pair(pair, tmp_path, name, lambda path: path.chmod(0), False)
    page = report.write_report(base).read_text(encoding="utf-8")
    (path / name).chmod(0o700)
    assert sections(page) == {"horkd": pair[1]} and "<strong>damaged</strong>" in page


def test_names_of_a_manifest_reach_no_path_unchecked(place):
    path = make_run(place / "runs", "horkd", "real")
    for name in ("../../etc", "/etc", "..", "a/b", ".hidden", "a\0b", ""):
        entry("dataset", value=name)(path / "manifest.json")
        with pytest.raises(ValueError, match="dataset") as refusal:
            report_evidence(place, path)
        assert "\n" not in str(refusal.value) and not (place / "results").exists()
    entry("dataset", value="digits")(path / "manifest.json")
    entry("device", value={"type": "../..", "name": ""})(path / "manifest.json")
    with pytest.raises(ValueError, match="'' in its manifest cannot be part of a path"):
        report_evidence(place, path)
    entry("device", value={"type": "cuda", "name": "NVIDIA H100 / ../x"})(path / "manifest.json")
    assert report_evidence(place, path) == [place / "results" / "nvidia-h100-x" / "horkd" / "digits"]


def report_evidence(place, path):
    return publishing.publish(place / "runs", place / "results", place / "nbs" / "index.ipynb", place / "README.md",
                              evidence=[path])


def test_the_board_writes_the_page_whenever_a_run_has_ended(tmp_path):
    from types import SimpleNamespace

    from kdnotes.batch.terminal import GrowingReport

    said = io.StringIO()
    board = GrowingReport(["horkd", "m3d", "dance"], tmp_path, said)
    outcome = lambda name: SimpleNamespace(planned=name, status="finished", reason="", seconds=1.0)
    tell = lambda name: (board.ended(outcome(name)), board.show([]), board.show([]))
    tell("horkd")
    assert "no report: no runs in" in said.getvalue()                    # nothing to show yet: the batch goes on
    make_run(tmp_path, "m3d")
    tell("m3d")
    page = tmp_path / "report" / "index.html"
    assert "This page grows." in page.read_text() and "under way or waiting: dance. It" in " ".join(page.read_text().split())
    tell("dance")
    board.report(last=True)
    assert "This page grows." not in page.read_text() and said.getvalue().count(f"report: {page}") == 3


def test_a_claim_for_another_profile_has_no_verdict_on_the_page(tmp_path):
    rows = Results("horkd", "demo")
    for seed in range(4):
        rows.add("Table 1", "digits", "CE", "accuracy", 50, seed)
        rows.add("Table 1", "digits", "KD", "accuracy", 60 + 4 * seed, seed)
    claims = judge([Claim("wide", "too wide for a demo", "KD", "CE")], rows)
    run = open_run("horkd", {"profile": "demo", "dataset": "digits"}, base=tmp_path, seeds=range(4), device="cpu", precision="32-true")
    nbformat.write(executed(), run.path / "notebook.ipynb")
    run.finish(rows, claims, data={})
    words = " ".join(" ".join(Tags(report.write_report(tmp_path).read_text()).text).split())
    assert "for the profile real" in words and "✓ supported" not in words.partition("too wide for a demo")[2] and "profile real profile" not in words
    assert terminal.count_claims(run.path) == "0/0/0"
