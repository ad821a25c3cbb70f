"""kdnotes.report: the page, its summary, and what is published in the repository."""
import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

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

from kdnotes import report
from kdnotes.results import Claim, Results, compare, judge
from kdnotes.runs import open_run, state

EVIL = "<script>alert('x')</script>"


def png(width=40, height=30, seed=0):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def book(title="Toy: a study", *, outputs=(), source="1 + 1", status="finished", reason=""):
    cells = [nbformat.v4.new_markdown_cell(f"# {title}\n\n> Soft labels teach | more.\n\nLong story."), nbformat.v4.new_code_cell(source, outputs=list(outputs))]
    metadata = {"kdnotes": {"status": status, "reason": reason},
                "papermill": {"input_path": "/root/nbs/toy.ipynb", "parameters": {"profile": "demo", "seeds": "0-2", "out": "x", "device": "auto", "overrides": {"lr": 0.1}}}}
    return nbformat.v4.new_notebook(cells=cells, metadata=metadata)


def make_run(base, slug="toy", profile="demo", seed_count=3, method="KD", figures=True, caption="What KD adds", notebook=None, **parameters):
    rows = Results(slug, profile)
    for seed in range(seed_count):
        rows.add("Table 1", "digits", "CE", "accuracy", 80 + 2 * seed, seed)
        rows.add("Table 1", "digits", method, "accuracy", 82.1 + 2 * seed + 0.1 * (seed % 2), seed)
    run = open_run(slug, {"profile": profile, "dataset": "digits", **parameters}, base=base, seeds=range(seed_count), device="cpu", precision="32-true", config={"lr": 0.1})
    if figures:
        fig, ax = plt.subplots(figsize=(2, 1))
        ax.plot([0, 1])
        run.save_figure(fig, "curve", caption)
        plt.close(fig)
        run.save_table(compare(rows.frame(), None, "Table 1"), "first", f"Table 1 of {method}")
    nbformat.write(notebook or book(f"{slug.upper()}: a study"), run.path / "notebook.ipynb")
    claims = judge([Claim("better", f"{method} helps", method, "CE"), Claim("worse", "the other way round", "CE", method)], rows)
    return run.finish(rows, claims, data={"digits": "0123456789abcdef" * 4})


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
    assert text.startswith("<!doctype html>") and 'name="viewport"' in text and "prefers-color-scheme: dark" in text and "@media print" in text
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
    for part in ("HORKD: a study", "3 finished, 4 not finished", "digits 3 seeds", "executed notebook", "better", "KD helps", "+2.13", "✓ supported", "✗ not supported",
                 "Table 1 of KD", "reproduced: mean ± standard deviation over 3 seeds", "84.1 ± 2.0", "What KD adds", "SHA-256", "torch 2", "digits 0123456789abcdef", "lr = 0.1",
                 "90.03†", "second hand, not read in the paper: quoted by the CRRCD paper Table V"):
        assert part in text, part
    assert text.index("profile real") < text.index("profile demo", text.index("HORKD: a study", text.index("profile real")))   # the weightier run first


def test_the_page_says_what_to_do_about_the_rest(page, runs):
    text = " ".join(" ".join(Tags(page.read_text(encoding="utf-8")).text).split())
    assert f"kdnotes run ccc --profile demo --seeds 0-2 -p lr 0.1 --out {runs}" in text and "ValueError: <script>" in text and "failed an error ended it" in text
    assert f"kdnotes run dgd --profile demo --seeds 0-2 -p lr 0.1 --out {runs} --force" in text and "broken" in text
    assert f"kdnotes run m3d --profile smoke --out {runs} --force" in text and "damaged" in text
    assert f"kdnotes run g2d --profile demo --out {runs}" in text and "absent" in text


def test_the_summary_holds_all_finished_numbers(page, runs):
    table = pd.read_csv(page.with_name("summary.csv"))
    assert len(table) == 18 and set(table["paper"]) == {"horkd", "evil"} and table.columns[:2].tolist() == ["paper", "run"]
    assert set(table["run"]) == {p.name for p in runs.glob("*/*") if state(p) == "finished"}


def test_out_and_links_elsewhere(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(runs.parent)
    path = report.write_report("runs", tmp_path / "page")
    assert all((path.parent / link).is_file() for link in Tags(path.read_text()).links if not link.startswith("#"))
    assert "kdnotes run ccc --profile demo --seeds 0-2 -p lr 0.1<" in path.read_text()      # the default folder goes without saying


def test_no_runs_is_said_and_unfinished_ones_alone_make_a_page(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs in .*kdnotes run --all"):
        report.write_report(tmp_path / "none")
    open_run("toy", {"profile": "demo", "dataset": "digits"}, base=tmp_path).close()
    text = report.write_report(tmp_path).read_text()
    assert "No run has finished yet" in text and "interrupted" in text
    assert len(pd.read_csv(tmp_path / "report" / "summary.csv")) == 0


def test_a_run_without_saved_tables_gets_them_from_its_results(tmp_path):
    make_run(tmp_path, "horkd", figures=False)
    text = report.write_report(tmp_path).read_text()
    assert "84.1 ± 2.0" in text and ">Table 1</div>" in text and "<h3>Figures" not in text


def test_a_notebook_that_failed_after_its_results_is_not_passed_over(tmp_path):
    make_run(tmp_path, notebook=book(status="failed", reason="NameError: plot"))
    assert "did not end well" in report.write_report(tmp_path).read_text() and report.newest_demo(tmp_path) == {}


@settings(max_examples=60, deadline=None)
@given(st.floats(-50, 50), st.floats(0, 20), st.floats(0, 5))
def test_the_drawn_interval_keeps_its_order_and_place(mean, half, threshold):
    reach = 60
    svg = report.interval_svg(mean - half, mean + half, mean, threshold, reach, "supported")
    x1, x2 = (float(v) for v in re.search(r"class='span' x1='([\d.]+)' x2='([\d.]+)'", svg).groups())
    dot, zero = float(re.search(r"cx='([\d.]+)'", svg)[1]), float(re.search(r"class='zero' x1='([\d.]+)'", svg)[1])
    assert 6 - 0.05 <= x1 <= dot + 0.1 and dot <= x2 + 0.1 and x2 <= 154.05 and abs(dot - (80 + 74 * mean / reach)) < 0.06
    assert (mean - half > threshold + 0.2) <= (x1 >= zero)
    assert report.interval_svg(float("nan"), 1, 1, 0, 1, "inconclusive") == ""


# ---- publishing

@pytest.fixture
def place(tmp_path):
    """A repository's root with `nbs/index.ipynb`."""
    (tmp_path / "nbs").mkdir()
    text = f"# kdnotes\n\n{report.BEGIN}\nold\n{report.END}\n\n[a](papers/horkd.ipynb) [b](https://x.org/y) [c](#part) ![d](../results/d.png)"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text), nbformat.v4.new_code_cell("x = 1\n\n\n\ny = d[0](1)")]), tmp_path / "nbs" / "index.ipynb")
    return tmp_path


def publish(place):
    return report.publish(place / "runs", place / "results", place / "nbs" / "index.ipynb", place / "README.md")


def test_publishing_copies_the_newest_demo_and_refreshes_the_front_page(place):
    outputs = [nbformat.v4.new_output("stream", name="stderr", text="10%\r99%\r100% in /root/kd/x\n"),
               nbformat.v4.new_output("display_data", {"image/png": png(), "image/svg+xml": "<svg/>", "text/plain": "<Figure>"}),
               nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}})]
    make_run(place / "runs", "horkd", "real")
    make_run(place / "runs", "horkd", other=1)
    newest = make_run(place / "runs", "horkd", seed_count=4, notebook=book("HORKD: a study", outputs=outputs, source="out = '/root/runs/horkd/demo'"))
    manifest = json.loads((newest / "manifest.json").read_text()) | {"finished": "2999-01-01T00:00:00+00:00"}
    (newest / "manifest.json").write_text(json.dumps(manifest))
    real = next(p for p in (place / "runs" / "horkd").iterdir() if p.name.startswith("real"))
    evidence = report.publish(place / "runs", place / "results", place / "nbs" / "index.ipynb", place / "README.md", evidence=[real])
    assert evidence == [place / "results" / "cpu" / "horkd" / "digits"] and not (place / "results" / "horkd").exists()
    assert publish(place) == [place / "results" / "horkd"]
    folder = place / "results" / "horkd"
    assert sorted(p.name for p in folder.iterdir()) == ["claims.csv", "manifest.json", "notebook.ipynb", "results.csv"] and state(folder) == "finished"
    assert (folder / "results.csv").read_bytes() == (newest / "results.csv").read_bytes()
    published = nbformat.read(folder / "notebook.ipynb", 4)
    nbformat.validate(published)
    code = published.cells[1]
    assert "papermill" not in published.metadata and code.source == "out = '…/demo'" and code.outputs[0].text == "100% in …/x\n"
    assert set(code.outputs[1].data) == {"image/png", "text/plain"} and len(code.outputs) == 2
    assert "/root" not in (folder / "notebook.ipynb").read_text() + (folder / "manifest.json").read_text()
    readme, index = (place / "README.md").read_text(), (place / "nbs" / "index.ipynb").read_text()
    row = "| **HORKD: a study** | Soft labels teach \\| more. | [demo run](results/horkd/notebook.ipynb) | ✓ 1 · ✗ 1 · ~ 0 | [cpu, digits: ✓ 1 · ✗ 1 · ~ 0](results/cpu/horkd/digits/notebook.ipynb) |"
    assert row in readme and "old" not in readme and "](../results/horkd/notebook.ipynb)" in index
    assert "[a](nbs/papers/horkd.ipynb) [b](https://x.org/y) [c](#part) ![d](results/d.png)" in readme
    assert "x = 1\n\n\n\ny = d[0](1)" in readme                             # code stays as it is
    before = (readme, index, (folder / "notebook.ipynb").read_bytes())
    publish(place)
    assert before == ((place / "README.md").read_text(), (place / "nbs" / "index.ipynb").read_text(), (folder / "notebook.ipynb").read_bytes())
    assert report.readme_text(place / "nbs" / "index.ipynb") == readme


def test_publishing_refuses_what_it_cannot_do(place):
    with pytest.raises(FileNotFoundError, match="no finished demo run"):
        publish(place)
    make_run(place / "runs", "toy")
    with pytest.raises(FileNotFoundError, match="at the root of the repository"):
        report.publish(place / "runs", place / "results", place / "none.ipynb", place / "README.md")
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# no marks")]), place / "nbs" / "index.ipynb")
    with pytest.raises(ValueError, match="results:begin"):
        publish(place)
    assert not (place / "README.md").exists()


def test_large_notebooks_are_made_small_and_stay_pictures():
    outputs = [nbformat.v4.new_output("display_data", {"image/png": png(450, 350, seed)}) for seed in range(3)]
    large = book(outputs=outputs)
    assert len(json.dumps(large)) > 1_500_000
    text = report.slim_notebook(large, 600_000)
    assert len(text.encode()) <= 600_000
    small = nbformat.reads(text, 4)
    sizes = [Image.open(io.BytesIO(base64.b64decode(o.data["image/png"]))).size for o in small.cells[1].outputs]
    assert len(sizes) == 3 and all(200 <= w <= 450 and abs(w / h - 9 / 7) < 0.02 for w, h in sizes)
    untouched = book(outputs=outputs[:1])
    assert nbformat.reads(report.slim_notebook(untouched, 10**7), 4).cells[1].outputs[0].data["image/png"] == outputs[0].data["image/png"]
    with pytest.raises(ValueError, match="Toy: a study: the executed notebook takes .* may take 1,500,000"):
        report.slim_notebook(book(outputs=[nbformat.v4.new_output("stream", name="stdout", text="x" * 2_000_000)]))


part = st.text("abcXYZ019._-", min_size=1, max_size=8).filter(lambda t: t.strip("."))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(sorted(report.ROOTS.split("|"))), st.lists(part, min_size=1, max_size=4), st.sampled_from(["", "'", '"', "(", "saved to ", "file://", "=", "["]))
def test_no_machine_path_survives(root, parts, before):
    path = "/".join(["", root, *parts])
    stripped = report.strip_paths(f"{before}{path}, and 1/2 of it")
    assert f"/{root}/" not in stripped and stripped.endswith(f"…/{parts[-1]}, and 1/2 of it")
    assert report.strip_paths(stripped) == stripped


@pytest.mark.parametrize("text", ["</data> <b>x</b>", "3/opt/4", "see https://x.org/home/y", "results/horkd/notebook.ipynb", "../data/set", "ratio a/b", "/", "//"])
def test_what_is_no_machine_path_stays(text):
    assert report.strip_paths(text) == text


def test_titles_and_abstracts():
    assert report.heading(book("A: b")) == "A: b" and report.abstract(book()) == "Soft labels teach | more."
    plain = {"cells": [{"source": "# T\n\nOne sentence. Another one."}]}
    assert report.abstract(plain) == "One sentence." and report.heading({"cells": []}) == "" and report.read_notebook(Path("none")) == {}
