"""kdnotes.plots: style, colours, deterministic files, helpers and their refusals."""
import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

matplotlib.use("agg")
import matplotlib.pyplot as plt

from kdnotes import plots
from kdnotes.results import interval


@pytest.fixture(autouse=True)
def clean():
    with matplotlib.rc_context():
        plots.style()
        yield
    plt.close("all")


def study(methods=("CE", "KD", "HORKD"), seeds=4, metric="accuracy"):
    rng = np.random.default_rng(0)
    return pd.DataFrame([(m, metric, 80 + 3 * i + rng.normal(), s) for i, m in enumerate(methods)
                         for s in range(seeds)],
                        columns=["method", "metric", "value", "seed"])


# ---- colours

def luminance_distance(a, b, deficiency):
    """Distance of two colours in linear RGB after Viénot's projection for protanopia or deuteranopia (Viénot, Brettel,
    Mollon 1999).
    """
    simulate = {"protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
                "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
                "none": np.eye(3)}[deficiency]
    linear = [np.array(matplotlib.colors.to_rgb(c)) ** 2.2 for c in (a, b)]
    shown = [np.clip(np.array(simulate) @ c, 0, 1) ** (1 / 2.2) for c in linear]
    return np.linalg.norm(shown[0] - shown[1])


@pytest.mark.parametrize("deficiency", ["none", "protan", "deutan"])
def test_the_first_colours_stay_apart_for_colour_blind_readers(deficiency):
    first = plots.PALETTE[:4]
    assert min(luminance_distance(a, b, deficiency) for i, a in enumerate(first) for b in first[:i]) > 0.12


@settings(max_examples=40)
@pytest.fixture(autouse=True, scope="module")
def without_a_cast():
    """A notebook that ran in this process may have left the cast of its figures."""
    plots.cast()


@given(st.lists(st.text("abcdefgh ", min_size=1, max_size=6), min_size=1, max_size=10, unique=True), st.randoms())
def test_colours_are_stable_and_distinct(names, random):
    colors = plots.method_colors(names)
    assert list(colors) == names and len(set(colors.values())) == len(names)
    assert plots.method_colors([*names, "HORKD"])["HORKD"] == plots.METHOD_COLORS["HORKD"]
    assert plots.method_colors(names[:1])[names[0]] == plots.method_colors([names[0], "teacher"])[names[0]]


def contrast_to_white(color):
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in matplotlib.colors.to_rgb(color)]
    return 1.05 / (np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05)


def test_a_cast_reserves_colours_and_mutes_all_others():
    """One colour for the proposed method, its rival and the teacher; whatever is drawn stands out from white by 3 to 1."""
    names = ["teacher on high", "teacher", "CE", "KD", "RKD-DA", "HORKD", "HORKD, order 1", "RKD-DA, no labels", "SP", "CRD"]
    plots.cast("HORKD", "RKD-DA")
    try:
        colors = plots.method_colors(names)
        assert (colors["HORKD"], colors["RKD-DA"], colors["teacher"]) == tuple(plots.ROLES.values())
        assert len(set(colors.values())) == len(names) and colors["HORKD, order 1"] in plots.VARIANTS["proposed"]
        assert {colors[name] for name in ("CE", "KD", "SP", "CRD")} <= set(plots.MUTED)
        assert plots.method_colors(["SP", "CRD"])["SP"] == plots.method_colors(["SP"])["SP"]
        for part in (["SP", "CRD"], ["CRD"], names[::-1], ["HORKD", "a new one", "KD"]):        # in any company
            found = plots.method_colors(part)
            assert {m: c for m, c in found.items() if m in colors} == {m: colors[m] for m in part if m in colors}
        assert plots.method_colors(["a new one"])["a new one"] not in colors.values()
        every = [*plots.ROLES.values(), *plots.MUTED, *(c for some in plots.VARIANTS.values() for c in some)]
        assert min(map(contrast_to_white, every)) >= 3 and len(set(every)) == len(every)
    finally:
        plots.cast()
    assert plots.method_colors(["CE"])["CE"] == plots.METHOD_COLORS["CE"]


def test_the_balance_of_gradients_shows_every_number_and_gain():
    rows = pd.DataFrame([(method, f"term={term};trained={share}", metric, value, 0)
                         for method, term, values in (("KD", "kd", (0.5, 0.9)), ("CRRCD", "kd", (0.4, 0.8)), ("CRRCD", "rcd", (2.5, -0.1)))
                         for share in ("0.00", "1.00") for metric, value in zip(("gradient_ratio", "gradient_cosine"), values)],
                        columns=["method", "setting", "metric", "value", "seed"])
    fig = plots.balance(rows, {"KD": 1.0, "CRRCD": -2.0})
    ratio, cosine, gain = fig.axes
    assert [t.get_text() for t in ratio.get_yticklabels()] == ["KD: kd", "CRRCD: kd", "CRRCD: rcd"]
    assert [t.get_text() for t in ratio.texts] == ["0.5", "0.5", "0.4", "0.4", "2.5", "2.5"] and [t.get_text() for t in cosine.texts][-1] == "-0.1"
    assert [bar.get_width() for bar in gain.patches] == [1.0, -2.0, -2.0]
    with pytest.raises(ValueError, match="no rows"):
        plots.balance(rows.iloc[:0], {})


# ---- files

def test_saved_figures_are_deterministic_and_whole(tmp_path):
    for folder in ("a", "b"):
        fig, ax = plt.subplots(figsize=(3, 2))
        plots.bars(ax, study())
        png = plots.save_figure(fig, tmp_path / folder, "ablation")
        assert png == tmp_path / folder / "ablation.png" and Image.open(png).size[0] > 300
    for ending in (".png", ".svg"):
        first, second = ((tmp_path / f / "ablation").with_suffix(ending).read_bytes() for f in "ab")
        assert first == second and len(first) < 200_000
    assert b"<dc:date>" not in first and b"HORKD" in first                 # text stays text
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["ablation.png", "ablation.svg"]


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden"])
def test_bad_figure_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="plain file name"):
        plots.save_figure(plt.figure(), tmp_path, name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        plots.save_figure(plt.figure(), tmp_path / "file", "x")


# ---- bars and lines show what they say

@pytest.mark.parametrize("zoom", [False, True])
def test_bars_show_mean_interval_and_every_seed(zoom):
    frame = study()
    _, ax = plt.subplots()
    plots.bars(ax, frame, zoom=zoom)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["CE", "KD", "HORKD"] and ax.get_xlabel() == "accuracy (%)"
    assert ax.yaxis_inverted()
    drawn = [sorted(line.get_xdata()) for line in ax.lines]
    for i, method in enumerate(["CE", "KD", "HORKD"]):
        x = frame.loc[frame["method"] == method, "value"]
        mean, low, high = interval(x)
        assert any(np.allclose(d, sorted(x)) for d in drawn if len(d) == 4)
        assert any(np.allclose(d, [low, high]) for d in drawn if len(d) == 2)
        if not zoom:
            assert ax.patches[i].get_width() == pytest.approx(mean) and ax.patches[i].get_x() == 0
    assert (ax.get_xlim()[0] > 50) == zoom


@pytest.mark.parametrize("metric, ends", [("accuracy", (0, 100)), ("fnmr", (0, 100)), ("mean_distance", (0, None)),
                                          ("feature_discrepancy", (0, None)), ("lead_best", (None, None))])
def test_no_interval_is_drawn_beyond_what_a_metric_can_reach(metric, ends):
    frame = pd.DataFrame({"method": "CE", "metric": metric, "value": [30.0, 70.0], "n": 1})
    low, high = interval(frame["value"])[1:]
    assert low < 0 and high > 100
    _, axes = plt.subplots(1, 2)
    plots.bars(axes[0], frame, zoom=True)
    plots.lines(axes[1], frame, x="n")
    drawn = [sorted(line.get_xdata()) for line in axes[0].lines]
    band = axes[1].collections[0].get_paths()[0].vertices[:, 1]
    expected = [bound if end is None else end for bound, end in zip((low, high), ends)]
    assert any(np.allclose(d, expected) for d in drawn if len(d) == 2) and np.allclose([band.min(), band.max()], expected)


@pytest.mark.parametrize("values", [(-3.0, -1.0), (-1.0, 4.0)])
def test_a_metric_of_ones_own_may_lie_below_zero(values):
    frame = pd.DataFrame({"method": "mine", "metric": "log_odds", "value": values, "n": 1})
    expected = interval(frame["value"])[1:]
    _, axes = plt.subplots(1, 2)
    plots.bars(axes[0], frame, zoom=True)
    plots.lines(axes[1], frame, x="n")
    band = axes[1].collections[0].get_paths()[0].vertices[:, 1]
    assert any(np.allclose(sorted(line.get_xdata()), expected) for line in axes[0].lines if len(line.get_xdata()) == 2)
    assert np.allclose([band.min(), band.max()], expected)


def test_bars_with_one_seed_order_and_refusal():
    _, ax = plt.subplots()
    plots.bars(ax, study(seeds=1, metric="fid"), order=["HORKD", "CE"])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["HORKD", "CE"] and ax.get_xlabel() == "FID"
    with pytest.raises(ValueError, match="no rows with method='RKD'; there are CE, KD, HORKD"):
        plots.bars(ax, study(), order=["RKD"])


def heights(ax):
    """Where the mean of each row is drawn."""
    return [line.get_ydata()[0] for line in ax.lines if line.get_marker() == "o"]


@pytest.mark.parametrize("rows", [1, 2])
def test_panels_of_a_row_show_the_same_methods_at_the_same_heights(rows):
    every = study(("CE", "KD", "RKD", "HORKD"))
    parts = {"all": every, "fewer": every[every.method.isin(["CE", "RKD"])], "another": study(("SP",))}
    fig, axes = plt.subplots(rows, 3 if rows == 1 else 2)
    plots.bar_panels(axes, parts, zoom=True)
    first, second, *others = axes.flat
    assert heights(first) == [0, 1, 2, 3] and heights(second) == [0, 2] and first.get_ylim() == second.get_ylim()
    assert [ax.get_title("left") for ax in axes.flat][:3] == list(parts)
    names = [t.get_text() for t in first.get_yticklabels()]
    if rows == 1:
        assert names == ["CE", "KD", "RKD", "HORKD", "SP"] and heights(others[0]) == [4]
    else:                                                                # a row of panels of its own
        assert heights(others[0]) == [0] and [t.get_text() for t in others[0].get_yticklabels()] == ["SP"]
        assert not others[1].axison
    shown = [ax.yaxis.get_tick_params()["labelleft"] for ax in axes.flat]
    assert shown[:3] == [True, False, rows == 2]
    with pytest.raises(ValueError, match="3 parts for 2 panels"):
        plots.bar_panels(axes.flat[:2], parts)


def test_lines_show_mean_and_band():
    frame = pd.concat([study(("CE", "HORKD")).assign(K=k, value=lambda f, k=k: f["value"] + k) for k in (1, 2, 4)])
    _, ax = plt.subplots()
    plots.lines(ax, frame.assign(K=frame["K"].astype(str)), "K")           # settings are texts
    assert [line.get_label() for line in ax.lines] == ["CE", "HORKD"] and ax.get_ylabel() == "accuracy (%)"
    assert ax.get_xlabel() == "K"
    for line in ax.lines:
        means = frame[frame["method"] == line.get_label()].groupby("K")["value"].mean()
        assert np.allclose(line.get_xdata(), [1, 2, 4]) and np.allclose(line.get_ydata(), means)
    assert len(ax.collections) == 2 and len({line.get_marker() for line in ax.lines}) == 2
    with pytest.raises(ValueError, match="'size' must hold numbers"):
        plots.lines(ax, frame.assign(size="8x8"), "size")


# ---- images, matrices, maps

@pytest.mark.parametrize("images",
                         [torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8),
                          np.random.default_rng(0).random((6, 4, 4)), torch.rand(6, 1, 4, 4, requires_grad=True)])
def test_image_grid_takes_what_networks_take(images):
    fig = plots.image_grid(images, rows=2, titles=["high", "low"])
    (ax,) = fig.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["high", "low"]
    assert not any(line.get_visible() for line in ax.get_ygridlines()), "no line goes through a picture"
    sheet = np.asarray(ax.images[0].get_array())
    for place, picture in enumerate(plots.to_pictures(images)):          # 4 pixels each, one between them
        top, left = place // 3 * 5, place % 3 * 5
        assert np.allclose(sheet[top:top + 4, left:left + 4, :3], picture) and (sheet[top:top + 4, left:left + 4, 3] == 1).all()
    assert sheet.shape == (9, 14, 4) and sheet[..., 3].sum() == 6 * 16, "nothing is drawn between them"
    shown = plots.to_pictures(images)
    assert shown.shape == (6, 4, 4, 3) and 0 <= shown.min() and shown.max() <= 1
    (ax,) = plots.image_grid(images, titles=list("abcdef")).axes
    assert [text.get_text() for text in ax.texts] == list("abcdef")


def test_bad_pictures_are_refused():
    for bad in (torch.zeros(2, 2, 4, 4), torch.zeros(4, 4), torch.zeros(1, 3, 2, 2, 2)):
        with pytest.raises(ValueError, match="images of shape"):
            plots.to_pictures(bad)
    for options in ({"rows": 0}, {"titles": ["a", "b"]}):
        with pytest.raises(ValueError, match="5 images"):
            plots.image_grid(torch.zeros(5, 1, 2, 2), **options)


def test_matrices_share_one_scale():
    fig = plots.matrix_row({"a": torch.eye(4), "b": 3 * torch.eye(4), "c": -torch.eye(4)}, label="similarity")
    assert {ax.images[0].get_clim() for ax in fig.axes[:3]} == {(-1.0, 3.0)}
    assert [ax.get_title(loc="left") for ax in fig.axes[:3]] == ["a", "b", "c"]
    assert fig.axes[3].get_ylabel() == "similarity"
    with pytest.raises(ValueError, match="one shape"):
        plots.matrix_pair(np.eye(3), np.eye(4))
    with pytest.raises(ValueError, match="one shape"):
        plots.matrix_row({})


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_pca_keeps_planar_distances_whatever_the_rotation_and_shift(seed):
    rng = np.random.default_rng(seed)
    plane = rng.normal(size=(12, 2)) * [3, 1]
    basis, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    points = plots.project(plane @ basis[:2] + rng.normal(size=5))
    distances = lambda p: np.linalg.norm(p[:, None] - p[None], axis=-1)
    assert np.allclose(distances(points), distances(plane)) and points[:, 0].var() >= points[:, 1].var()
    assert np.allclose(points, plots.project(plane @ basis[:2]), atol=1e-8)


def test_embedding_maps():
    rng = np.random.default_rng(0)
    features = torch.tensor(np.concatenate([rng.normal(size=(15, 8)), rng.normal(size=(15, 8)) + 9]),
                            dtype=torch.bfloat16)
    labels = torch.arange(30) // 15
    for method in ("pca", "tsne"):
        ax = plots.embedding_map(features, labels, method, classes=["zero", "one"], title=method)
        assert [t.get_text() for t in ax.get_legend().get_texts()] == ["zero", "one"]
        assert ax.get_title(loc="left") == method
    assert np.array_equal(plots.project(features, "tsne", seed=3), plots.project(features, "tsne", seed=3))
    assert plots.project(np.arange(5.0)[:, None]).shape == (5, 2)
    with pytest.raises(ValueError, match="'umap' is unknown"):
        plots.project(features, "umap")
    with pytest.raises(ValueError, match="30 features with 3 labels"):
        plots.embedding_map(features, labels[:3])
    with pytest.raises(ValueError, match="finite"):
        plots.project(torch.full((4, 2), float("nan")))


def test_a_method_without_labels_has_the_colour_of_the_method():
    plots.cast("HORKD", "RKD-DA")
    try:
        bare = plots.method_colors(["RKD-D, no labels", "RKD-A, no labels", "RKD-DA, no labels", "HORKD, no labels"])
        full = plots.method_colors(["RKD-D", "RKD-A", "RKD-DA", "HORKD"])
        both = plots.method_colors(["RKD-D", "RKD-D, no labels"])
    finally:
        plots.cast()
    assert list(bare.values()) == list(full.values()) and both["RKD-D"] == full["RKD-D"] != both["RKD-D, no labels"]
