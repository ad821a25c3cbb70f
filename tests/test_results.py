"""kdnotes.results: tidy rows, reported numbers, joins, intervals, claims."""
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdnotes import results as R
from kdnotes.results import Claim, Results

SHEETS = Path(__file__).parents[2] / "shared" / "papers"
word = st.text("abcXYZ019 -.+×", min_size=1, max_size=8).filter(lambda t: t.strip() == t)
number = st.floats(-1e6, 1e6).map(lambda v: round(v, 6))


def study(better, worse, metric="accuracy"):
    book = Results("toy", "real")
    for seed, (b, w) in enumerate(zip(better, worse)):
        book.add("Table 1", "digits", "B", metric, b, seed, {"res": "3x3"})
        book.add("Table 1", "digits", "W", metric, w, seed, {"res": "3x3"})
    return book


def reported_rows(*rows):
    frame = pd.DataFrame(rows,
                         columns=["table", "dataset", "setting", "method", "metric", "printed", "source", "detail"])
    return frame


# ---- rows and files

@settings(max_examples=40)
@given(st.dictionaries(word, word, max_size=4))
def test_setting_text_round_trips_and_keeps_the_order(setting):
    text = R.setting_text(setting)
    assert list(R.parse_setting(text).items()) == list(setting.items())
    assert R.setting_text(text) == text


@pytest.mark.parametrize("bad",
                         [{"a;b": 1}, {"a": "x;y"}, {"a=b": 1}, {"": 1}, {"a": ""}, "a", "a=1;;b=2", "a=1;a=2", "=3"])
def test_ambiguous_settings_are_refused(bad):
    with pytest.raises(ValueError, match="setting"):
        R.setting_text(bad)


def test_numbers_in_settings_are_short():
    assert R.setting_text({"lr": 0.1, "n": 3, "on": True}) == "lr=0.1;n=3;on=True"


@settings(max_examples=20)
@given(st.lists(st.tuples(word, number, st.integers(0, 5)), min_size=1, max_size=6, unique_by=lambda r: (r[0], r[2])))
def test_results_survive_the_file_exactly(tmp_path_factory, rows):
    book = Results("p", "smoke")
    for method, value, seed in rows:
        book.add("T", "d", method, "accuracy", value, seed)
    path = tmp_path_factory.mktemp("r") / "results.csv"
    R.write_results(book, path)
    pd.testing.assert_frame_equal(R.read_results(path), book.frame())
    assert path.read_text(encoding="utf-8").splitlines()[0] == ",".join(R.COLUMNS)


def test_names_that_look_like_missing_values_stay_names(tmp_path):
    book = Results("p", "smoke")
    book.add("T", "NA", "None", "epsilon", math.inf, 0)
    R.write_results(book, tmp_path / "r.csv")
    row = R.read_results(tmp_path / "r.csv").iloc[0]
    assert (row["dataset"], row["method"], row["value"], row["setting"]) == ("NA", "None", math.inf, "")


@pytest.mark.parametrize("change, says", [
    ({"value": math.nan}, "not a number"), ({"method": ""}, "is empty"), ({"seed": -1}, "seed"),
    ({"seed": 0.5}, "seed"), ({"table": None}, "is empty"),
])
def test_a_bad_number_is_refused_when_added(change, says):
    good = {"table": "T", "dataset": "d", "method": "m", "metric": "accuracy", "value": 1.0, "seed": 0}
    with pytest.raises(ValueError, match=says):
        Results("p", "smoke").add(**{**good, **change})


def test_a_number_given_twice_is_refused_and_the_old_file_stays(tmp_path):
    book = study([1, 2], [0, 1])
    R.write_results(book, tmp_path / "r.csv")
    before = (tmp_path / "r.csv").read_bytes()
    book.extend(book.frame().head(1))
    with pytest.raises(ValueError, match=r"given twice: .*method=B"):
        R.write_results(book.rows and pd.DataFrame(book.rows), tmp_path / "r.csv")
    assert (tmp_path / "r.csv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothere.csv"):
        R.read_results(tmp_path / "nothere.csv")
    (tmp_path / "cut.csv").write_text("paper,table,dataset\na,b\n")
    with pytest.raises(ValueError, match="cut.csv: the columns setting, method"):
        R.read_results(tmp_path / "cut.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(ValueError, match="empty.csv: not a readable CSV"):
        R.read_results(tmp_path / "empty.csv")
    (tmp_path / "word.csv").write_text(",".join(R.COLUMNS) + "\np,t,d,,m,accuracy,high,0,demo\n")
    with pytest.raises(ValueError, match=r"word.csv: the value is not a number in the row paper=p"):
        R.read_results(tmp_path / "word.csv")


def test_extend_takes_rows_and_frames():
    one = study([1, 2, 3], [0, 1, 2])
    two = Results("toy", "real", one.frame())
    assert two.frame().equals(one.frame()) and len(two) == 6
    with pytest.raises(TypeError):
        two.extend([{"table": "T", "colour": "blue"}])


def test_select_filters_columns_and_setting_keys():
    frame = study([1, 2, 3], [0, 1, 2]).frame()
    assert len(R.select(frame, method="B", seed=[0, 2], res="3x3")) == 2
    assert len(R.select(frame, {"method": ["B", "W"]})) == 6
    assert R.select(frame, nokey="x").empty and R.select(frame.head(0), method="B").empty


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(-10**6, 10**6), number, word), min_size=1, max_size=5))
def test_column_gives_back_what_a_setting_was_made_of(values):
    book = Results("toy", "demo")
    for seed, (whole, real, name) in enumerate(values):
        book.add("T", "d", "m", "accuracy", 1.0, seed, {"low": whole, "rate": real, "network": name})
    frame = book.frame()
    assert R.column(frame, "low", int).tolist() == [v[0] for v in values]
    assert R.column(frame, "rate", float).tolist() == [float(f"{v[1]:g}") for v in values]
    assert R.column(frame, "network").tolist() == [v[2] for v in values]
    assert R.column(frame, "seed", int).tolist() == list(range(len(values)))
    assert R.column(frame, "low", float).dtype == float and R.column(frame, "low", int).dtype == int


def test_column_says_what_is_lacking_or_of_another_kind():
    book = study([1, 2], [0, 1])
    book.add("Table 2", "digits", "B", "accuracy", 5.0, 0, {"low": 8, "G": "R"})
    frame = book.frame()
    assert R.column(frame, "low", float).tolist()[-1] == 8 and R.column(frame, "low", float).isna().sum() == 4
    assert R.column(frame, "low").tolist() == ["", "", "", "", "8"]
    assert R.column(R.select(frame, table="Table 2"), "low", int).tolist() == [8]
    for key, kind, says in (("low", int, r"^low = '' is not of the kind int, in the row paper=toy, table=Table 1"),
                            ("G", float, r"^G = 'R' is not of the kind float, in the row .*table=Table 2"),
                            ("res", int, "^res = '3x3'"),
                            ("lo", int, "^no row has the key 'lo'; the keys are res, low, G, "),
                            ("low", bool, "kind <class 'bool'> is unknown; expected float, int or str")):
        with pytest.raises(ValueError, match=says) as refusal:
            R.column(frame, key, kind)
        assert "\n" not in str(refusal.value)
    for kind in (int, float, str):
        assert R.column(frame.head(0), "low", kind).empty
    assert frame.equals(book.frame())                                     # nothing was changed


# ---- statistics

def test_interval_hand_case():
    mean, low, high = R.interval([2.0, 4.0, 6.0, 8.0])                     # s = 2.5820, t(0.975, 3) = 3.182446
    half = 3.182446305 * 2.5819888975 / 2
    assert (mean, low, high) == pytest.approx((5, 5 - half, 5 + half), abs=1e-8)
    assert math.isnan(R.interval([1.0])[1]) and math.isnan(R.interval([])[0])


def test_summarise_agrees_with_interval_group_by_group():
    rng = np.random.default_rng(0)
    book = study(rng.normal(80, 2, 5), rng.normal(70, 3, 5))
    table = R.summarise(book.frame()).set_index("method")
    for method in "BW":
        x = R.select(book.frame(), method=method)["value"]
        assert table.loc[method, ["mean", "ci_low", "ci_high"]].tolist() == pytest.approx(R.interval(x))
        assert table.loc[method, "std"] == pytest.approx(np.std(x, ddof=1)) and table.loc[method, "n"] == 5
    single = R.summarise(R.select(book.frame(), seed=0))
    assert single["std"].isna().all() and single["ci_low"].isna().all()


@settings(max_examples=30)
@given(st.lists(st.floats(-100, 100), min_size=3, max_size=8), st.floats(-50, 50), st.floats(0.1, 10))
def test_interval_moves_and_scales_with_the_values(x, shift, scale):
    mean, low, high = R.interval(x)
    moved = R.interval([scale * v + shift for v in x])
    assert moved == pytest.approx((scale * mean + shift, scale * low + shift, scale * high + shift), abs=1e-6)
    assert low <= mean <= high


# ---- claims

def test_judge_pairs_by_seed():
    # the seeds differ by tens of points, the pairs by one: unpaired nothing could be said
    book = study([51, 72, 91], [50, 70.9, 90.1])
    judged = R.judge([Claim("b", "B beats W", "B", "W")], book).iloc[0]
    mean, low, high = R.interval([1.0, 1.1, 0.9])
    assert (judged["difference"], judged["ci_low"], judged["ci_high"],
            judged["n"]) == pytest.approx((mean, low, high, 3))
    assert judged["verdict"] == "supported"


@pytest.mark.parametrize("gaps, options, expected", [
    ([1.0, 1.1, 0.9], {}, "supported"), ([-1.0, -1.1, -0.9], {}, "not supported"),
    ([1.0, -1.0, 0.5], {}, "inconclusive"),
    ([1.0, 1.1, 0.9], {"margin": 2}, "not supported"), ([1.0, 1.1, 0.9], {"margin": 1}, "inconclusive"),
    ([9.0, 9.0], {}, "inconclusive"), ([9.0], {}, "inconclusive"), ([0.0, 0.0, 0.0], {}, "inconclusive"),
    ([-0.1, 0.1, 0.0], {"kind": "at least", "margin": 1}, "supported"),
    ([-3.0, -3.1, -2.9], {"kind": "at least", "margin": 1}, "not supported"),
    ([-1.0, -1.1, -0.9], {"kind": "at least", "margin": 1}, "inconclusive"),
    ([0.0, 0.0, 0.0], {"kind": "at least"}, "supported"),
])
def test_verdicts(gaps, options, expected):
    judged = R.judge([Claim("b", "", "B", "W", **options)], study([50 + g for g in gaps], [50] * len(gaps)))
    assert judged["verdict"].item() == expected and judged["n"].item() == len(gaps)


def test_less_is_better_turns_the_difference():
    book = study([10, 11, 12], [20, 21, 22.5], metric="fid")
    assert R.judge([Claim("b", "", "B", "W", "fid")], book)["difference"].item() == pytest.approx(10.1666667)
    assert R.judge([Claim("b", "", "B", "W", "fid", lower=False)], book)["verdict"].item() == "not supported"


def test_several_methods_are_averaged_and_incomplete_seeds_left_out():
    book = study([10, 20, 30, 40], [0, 0, 0, 0])
    for seed in range(3):
        book.add("Table 1", "digits", "C", "accuracy", 30, seed)
    gaps = R.differences(book.frame(), Claim("avg", "", ["B", "C"], "W"))
    assert gaps.to_dict() == {0: 20, 1: 25, 2: 30}                        # seed 3 has no C
    by_filter = R.differences(book.frame(), Claim("f", "", {"method": "B", "res": "3x3"}, {"method": "W"},
                                                  where={"dataset": "digits"}))
    assert by_filter.to_dict() == {0: 10, 1: 20, 2: 30, 3: 40}


@pytest.mark.parametrize("profile, metric, spread, belongs", [
    ("demo", "accuracy", 3.0, "real"), ("demo", "accuracy", 0.5, ""), ("real", "accuracy", 3.0, ""), ("demo", "operations", 9.0, ""),
])
def test_what_a_demo_cannot_tell_to_two_points_is_listed_and_counts_nowhere(profile, metric, spread, belongs):
    rows = R.Results("dance", profile)
    for seed in range(4):
        rows.add("t", "d", "narrow", "accuracy", 50 + 9 + 0.1 * seed, seed)
        rows.add("t", "d", "plain", "accuracy", 50, seed)
        rows.add("t", "d", "wide", metric, 50 + 20 + spread * seed, seed)
        rows.add("t", "d", "worse", metric, 50, seed)
    claims = [R.Claim("a", "first", "wide", "worse", metric), R.Claim("b", "second", "narrow", "plain")]
    judged = R.judge(claims, rows)
    assert judged["belongs"].tolist() == [belongs, ""] and len(R.claims_table(judged)) == 2 and judged["difference"][0] > 20
    assert R.count_verdicts(judged)["supported"] == 1 + (not belongs)
    said = "\n".join(R.closing(judged))
    assert said.startswith(f"Of {2 - bool(belongs)} claim") and ("is for the profile real to judge: a (+2" in said) == bool(belongs)
    assert R.headline(judged).startswith(f"{'For the profile real to judge' if belongs else 'Supported'}: a (+")
    assert R.headline(judged.iloc[::-1]).endswith("1 for the profile real to judge." if belongs else "0 inconclusive.")
    assert R.claims_table(judged)["would decide"].tolist() == ["profile real" if belongs else "", ""]
    assert math.isnan(judged["p"][0]) == bool(belongs)


def test_a_claim_about_what_was_not_measured_is_inconclusive():
    judged = R.judge([Claim("gone", "", "nobody", "W")], study([1, 2, 3], [0, 1, 2])).iloc[0]
    assert judged["n"] == 0 and math.isnan(judged["difference"]) and judged["verdict"] == "inconclusive"
    assert R.judge([], study([1], [0])).empty


def test_bad_claims_are_refused():
    with pytest.raises(ValueError, match="kind 'more'"):
        Claim("x", "", "a", "b", kind="more")
    with pytest.raises(ValueError, match="margin -1"):
        Claim("x", "", "a", "b", margin=-1)
    with pytest.raises(ValueError, match="two claims have the name 'x'"):
        R.judge([Claim("x", "", "B", "W"), Claim("x", "", "W", "B")], study([1, 2, 3], [0, 1, 2]))
    with pytest.raises(ValueError, match="at least two methods"):
        R.ordering("x", "", ["a"])


def test_ordering_makes_neighbouring_claims():
    claims = R.ordering("chain", "t", ["B", ["W", "V"], {"method": "U", "res": 8}], "recall_at_1", margin=0.5)
    assert [c.name for c in claims] == ["chain: B > W, V", "chain: W, V > U (res 8)"]
    assert {(c.metric, c.margin) for c in claims} == {("recall_at_1", 0.5)}
    assert claims[1].worse == {"method": "U", "res": 8}


# ---- where a claim comes from, and how much it takes

PRINTED = pd.DataFrame(
    [("Table 2", dataset, f"res={res}", method, "accuracy", value, "paper") for dataset, res, method, value in
     [("A", 1, "B", 60.0), ("A", 1, "W", 50.0), ("A", 2, "B", 64.0), ("A", 2, "W", 60.0), ("A", 3, "B", 99.0)]]
    + [("Table 2", "A", "res=1", "B", "accuracy", 10.0, "recalled"), ("Table 2", "A", "order=2;res=1", "V", "fid", 5.0, "paper"),
       ("Table 2", "A", "order=1;res=1", "V", "fid", 8.0, "paper")],
    columns=["table", "dataset", "setting", "method", "metric", "value", "source"])


def cited(name="c", better="B", worse="W", metric="accuracy"):
    return Claim(name, "", better, worse, metric, source="paper", cited=R.Cited("Table 2"))


def test_a_claim_of_the_paper_has_its_difference_from_the_reported_numbers():
    gaps = R.cited_differences(cited(), PRINTED)
    assert gaps.to_dict() == {("A", "1"): 10.0, ("A", "2"): 4.0}          # where both are; the recalled row gives way
    by_setting = cited("s", {"order": 2}, {"order": 1}, "fid")
    assert R.cited_differences(by_setting, PRINTED).tolist() == [3.0]     # less is better
    renamed = Claim("r", "", "ours", "theirs", "accuracy_best", source="paper",
                    cited=R.Cited("Table 2", "B", "W", "accuracy", {"res": 2}))
    assert R.cited_differences(renamed, PRINTED).tolist() == [4.0]
    odd = PRINTED.assign(setting="source=ImageNet;printed=1")             # keys that are columns too
    assert R.cited_differences(cited(), odd.iloc[:2]).tolist() == [10.0]
    judged = R.judge([cited()], study([1, 2, 3], [0, 1, 1]), PRINTED)
    assert judged["reported"].item() == 7.0 and R.claims_table(judged)["paper"].item() == "+7.00"


@pytest.mark.parametrize("claim, says", [
    (cited(worse="nobody"), "no reported number has table=Table 2, metric=accuracy, method=nobody; the tables are Table 2"),
    (cited(metric="rank1"), "no reported number has"), (cited(worse="V", metric="accuracy"), "no reported number"),
    (cited(better={"method": "B", "res": 3}, worse={"method": "B", "res": 4}), "no reported number"),
    (Claim("c", "", "B", "W", source="paper", cited=R.Cited("Table 9")), "no reported number has table=Table 9"),
    (Claim("c", "", "B", "W"), "cites no reported numbers"),
])
def test_a_claim_that_the_paper_does_not_make_is_refused(claim, says):
    with pytest.raises(ValueError, match=re.escape(says)) as refusal:
        R.cited_differences(claim, PRINTED)
    assert "\n" not in str(refusal.value)


def test_sources_are_stated_in_full():
    for wrong in ({"source": "poster"}, {"source": "paper"}, {"source": "sheet", "cited": R.Cited("Table 2")}, {"cited": R.Cited("T")}):
        with pytest.raises(ValueError, match="claim 'x': source "):
            Claim("x", "", "B", "W", **wrong)
    assert {Claim("x", "", "B", "W").source} < set(R.CLAIM_SOURCES)


def sets_and_networks(sets=2, networks=4, gain=1.0, keyed=True):
    """Two methods whose sets are judged by several networks each: rows, and what each was made from."""
    book, origins = Results("toy", "demo"), []
    for method, extra in (("B", gain), ("W", 0.0)):
        for s in range(sets):
            for n in range(networks):
                book.add("T", "digits", method, "accuracy", 80 + extra + 5 * s + n / 10, s * networks + n, {"set": s} if keyed else {})
                origins.append([f"Set-{method}{s}", f"Judge-{method}{s}{n}", "Teacher-0"])
    return book, origins


@pytest.mark.parametrize("sets, options, expected", [
    (1, {}, "inconclusive"), (2, {}, "inconclusive"), (3, {}, "inconclusive"), (1, {"given": ("Set",)}, "supported"),
    (2, {"unit": "set"}, "inconclusive"), (4, {"unit": "set"}, "supported"),
])
def test_what_is_compared_is_what_must_be_repeated(sets, options, expected):
    book, origins = sets_and_networks(sets, keyed="unit" in options)
    judged = R.judge([Claim("b", "", "B", "W", **options)], book, origins=origins).iloc[0]
    assert judged["verdict"] == expected
    assert judged["n"] == (sets if "unit" in options else 4 * sets) and judged["difference"] == pytest.approx(1)
    assert judged["made"] == (4 * sets if "given" in options else sets)
    if expected == "inconclusive" and "unit" not in options:
        assert R.what_is_open(judged) == f"what is compared was made {R.times(sets)} only, not once for each seed"


@pytest.mark.parametrize("own, drawn, expected", [(True, 0, 4), (False, 0, 1), (False, 1, 4)])
def test_one_network_under_two_conditions_is_as_many_as_there_are_of_it(own, drawn, expected):
    """A number that is the same for every seed, since nothing in it depends on one, says no more for standing there four times."""
    book, origins = Results("toy", "demo"), []
    for seed in range(4):
        for setting, value in (("bare", 98.0), ("masked", 88.0)):
            book.add("T", "faces", "A", "accuracy", value + own * seed / 10 + drawn * seed * (value - 93) / 100, seed, {"pairs": setting})
            origins.append([f"Network-{seed * own}", "Photographs-0"])
    judged = R.judge([Claim("c", "", {"setting": "pairs=bare"}, {"setting": "pairs=masked"})], book, origins=origins).iloc[0]
    assert (judged["n"], judged["made"], judged["difference"]) == (4, expected, pytest.approx(10 + 0.15 * drawn))
    assert judged["verdict"] == ("supported" if expected == 4 else "inconclusive"), "what a seed draws itself is measured anew"
    nothing = R.judge([Claim("c", "", {"setting": "pairs=bare"}, {"setting": "pairs=masked"})], book, origins=[[]] * 8).iloc[0]
    assert nothing["made"] == 4


def test_a_unit_is_averaged_over_all_else_and_left_out_where_it_is_not_whole():
    book, _ = sets_and_networks(3)
    frame = book.frame()
    assert R.differences(frame, Claim("b", "", "B", "W", unit="set")).round(9).tolist() == [1.0] * 3
    assert R.differences(frame, Claim("b", "", "B", "W")).empty            # no seed has all the sets
    assert len(R.differences(frame.drop(0), Claim("b", "", "B", "W", unit="set"))) == 2
    with pytest.raises(ValueError, match="no row has the key 'fold'"):
        R.differences(frame, Claim("b", "", "B", "W", unit="fold"))


@settings(max_examples=40)
@given(st.lists(st.one_of(st.just(math.nan), st.floats(0, 1)), max_size=12))
def test_holm_is_what_statistics_books_say(p):
    found = R.holm(p)
    known = sorted(x for x in p if not math.isnan(x))
    for value, corrected in zip(p, found):
        if math.isnan(value):
            assert math.isnan(corrected)
        else:                                    # the largest of the corrected ones up to it
            rank = max(i for i, x in enumerate(known) if x == value)
            assert corrected == pytest.approx(max(min(1, (len(known) - k) * known[k]) for k in range(rank + 1)))


def test_holm_stands_beside_the_plain_verdict():
    gaps = [1.0, 2.0, 0.5, 1.2]                                           # p is about 0.03
    book = study([50 + g for g in gaps], [50] * 4)
    alone = R.judge([Claim("b", "", "B", "W")], book).iloc[0]
    assert alone["verdict"] == alone["holm"] == "supported" and 0.02 < alone["p"] < 0.05
    many = R.judge([Claim(f"b{i}", "", "B", "W") for i in range(3)], book)
    assert set(many["verdict"]) == {"supported"} and set(many["holm"]) == {"inconclusive"}


@settings(max_examples=30)
@given(st.lists(st.integers(-30, 30), min_size=3, max_size=8), st.sampled_from([0.0, 1.0]), st.sampled_from(R.KINDS))
def test_p_and_interval_agree(gaps, margin, kind):
    claim = Claim("b", "", "B", "W", margin=margin, kind=kind)
    mean, low, high = R.interval(gaps)
    decided = R.verdict(claim, low, high, len(gaps)) != "inconclusive"
    assert (R.p_value(claim, gaps) < 0.05) == decided or min(abs(low - claim.threshold), abs(high - claim.threshold)) < 1e-9


@pytest.mark.parametrize("gaps", [[1.0, 2.0, -0.5, 0.5], [0.2, 0.1, -0.05], [3.0, -1.0]])
def test_the_number_that_would_decide_is_the_smallest(gaps):
    claim, s = Claim("b", "", "B", "W"), np.std(gaps, ddof=1)
    needed = R.needed_repetitions(claim, gaps)
    from scipy.stats import t
    half = lambda n: t.ppf(0.975, n - 1) * s / math.sqrt(n)
    assert half(needed) < abs(np.mean(gaps)) <= half(needed - 1)
    judged = R.judge([claim], study([50 + g for g in gaps], [50] * len(gaps)))
    assert R.claims_table(judged)["would decide"].item() == f"about {needed:.0f} seeds"
    assert R.needed_repetitions(claim, [1, -1, 0]) == math.inf and math.isnan(R.needed_repetitions(claim, [1]))


def test_the_closing_sentences_follow_the_numbers():
    up, down = (R.judge([Claim("b", "", "B", "W"), Claim("w", "", "W", "B", source="sheet")],
                        study([50 + sign * g for g in (1.0, 1.1, 0.9)], [50] * 3)) for sign in (1, -1))
    said = [" ".join(R.closing(judged)) for judged in (up, down)]
    assert "Supported: b (+1.00 [+0.75, +1.25])." in said[0] and "Not supported: b (−1.00 [−1.25, −0.75])." in said[1]
    assert "Of 1 claim attested for the paper" in said[0] and said[0] != said[1]


@pytest.mark.long
@settings(max_examples=30)
@given(st.lists(st.floats(-20, 20), min_size=3, max_size=7), st.floats(0, 5))
def test_verdicts_do_not_depend_on_a_common_shift_and_turn_with_the_sides(gaps, shift):
    straight = R.judge([Claim("b", "", "B", "W")], study([50 + g for g in gaps], [50] * len(gaps))).iloc[0]
    moved = R.judge([Claim("b", "", "B", "W")], study([50 + g + shift * i for i, g in enumerate(gaps)],
                                                      [50 + shift * i for i in range(len(gaps))])).iloc[0]
    turned = R.judge([Claim("b", "", "W", "B")], study([50 + g for g in gaps], [50] * len(gaps))).iloc[0]
    assert moved["ci_low"] == pytest.approx(straight["ci_low"], abs=1e-6)
    assert turned["difference"] == pytest.approx(-straight["difference"], abs=1e-9)
    assert turned["ci_high"] == pytest.approx(-straight["ci_low"], abs=1e-9)


def test_claims_survive_the_file(tmp_path):
    judged = R.judge([Claim("b", "B, of course; \"beats\" W", "B", "W"), Claim("gone", "", "nobody", "W")],
                     study([1, 2, 4], [0, 1, 2]))
    R.write_claims(judged, tmp_path / "claims.csv")
    pd.testing.assert_frame_equal(R.read_claims(tmp_path / "claims.csv"), judged, check_dtype=False)
    (tmp_path / "claims.csv").write_text("claim,text\nx,y\n")
    with pytest.raises(ValueError, match="claims.csv: not a table of claims"):
        R.read_claims(tmp_path / "claims.csv")


# ---- reported numbers

def test_reported_numbers_of_the_package_are_marked():
    frame = R.reported("horkd")
    assert len(frame) == 15 and set(frame["source"]) == {"note"} and frame["context"].sum() == 13
    own = frame[~frame["context"]].set_index("dataset")
    assert own.loc["LFW", "printed"] == "90.03" and own.loc["LFW", "value"] == 90.03
    assert own.loc["UCCS", "detail"].startswith("quoted by")
    with pytest.raises(FileNotFoundError, match="did you mean horkd"):
        R.reported("hork")


@pytest.mark.long
@pytest.mark.skipif(not SHEETS.is_dir(),
                    reason="the reported numbers beside the repository are absent (../shared/papers)")
def test_every_reported_csv_is_readable_and_the_package_has_the_same():
    package = Path(R.__file__).parent / "reported"
    sources = set()
    for path in sorted(SHEETS.glob("*.csv")):
        frame = R.reported(path.stem, path)
        sources |= set(frame["source"])
        frame["setting"].map(R.parse_setting)
        if (package / path.name).exists():
            assert (package / path.name).read_bytes().startswith(path.read_bytes()), "rows of context may follow"
        for table in frame["table"].unique():
            printed = R.compare(study([1], [0]).frame(), frame, table)
            assert "—" in printed.to_numpy() and not printed.isna().any(axis=None)
            alone = R.reported_table(frame, table)
            rows = frame[frame["table"] == table]
            cells = [c.rstrip("§†‡°") for c in alone.to_numpy().ravel()]
            assert len(alone) <= len(rows) and set(rows["printed"]) <= set(cells)
            assert not any("reproduced" in name for name in alone)
    assert sources == {"paper", "code", "note", "recalled"}


def test_an_unknown_provenance_is_refused(tmp_path):
    head = "table,dataset,setting,method,metric,value,std,provenance\n"
    (tmp_path / "x.csv").write_text(head + "T,d,,m,accuracy,1.0,,rumour: heard it\n")
    with pytest.raises(ValueError, match="unknown provenance.*rumour"):
        R.reported("x", tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text(head + "T,d,,m,accuracy,about 1,,paper\n")
    with pytest.raises(ValueError, match="'about 1' in the column value is not a number"):
        R.reported("x", tmp_path / "x.csv")


# ---- tables

PAPER = reported_rows(("Table 1", "digits", "res=3x3", "B", "accuracy", "83.10 ± 0.40", "paper", ""),
                      ("Table 1", "digits", "res=3x3", "X", "accuracy", "82.0", "note", "quoted by a survey"),
                      ("Table 1", "digits", "res=3x3", "Y", "accuracy", "81.0", "recalled", ""),
                      ("Table 1", "digits", "res=3x3", "Z", "accuracy", "80.0", "paper", "read off a figure"),
                      ("Table 1", "digits", "res=3x3", "C", "accuracy", "79.0", "code", ""))


def test_compare_joins_marks_and_shows_what_is_missing():
    table = R.compare(study([80, 82, 84], [70, 71, 72]).frame(), PAPER, "Table 1").set_index("method")
    ours, theirs = "accuracy (%) · reproduced", "accuracy (%) · reported"
    assert list(table.index) == ["B", "W", "X", "Y", "Z", "C"]
    assert table.loc["B"].tolist() == ["82.0 ± 2.0", "83.10 ± 0.40"] and table.loc["W"].tolist() == ["71.0 ± 1.0", "—"]
    assert table.loc[["X", "Y", "Z", "C"], theirs].tolist() == ["82.0†", "81.0‡", "80.0°", "79.0§"]
    assert table.loc["X", ours] == "—"
    notes = "\n".join(table.attrs["notes"])
    assert "digits, res 3x3" in notes and "over 3 seeds" in notes
    assert "† second hand, not read in the paper: quoted by a survey" in notes
    assert "‡ from memory" in notes and "° read in the paper: read off a figure" in notes


def test_compare_ignores_the_order_of_settings_and_the_keys_that_do_not_count():
    book = Results("toy", "demo")
    book.add("Table 1", "digits", "B", "accuracy", 80, 0, {"epochs": 3, "res": "3x3", "ipc": 1})
    theirs = reported_rows(("Table 9", "digits", "ipc=1;res=3x3", "B", "accuracy", "83.1", "recalled", ""),
                           ("Table 9", "digits", "res=3x3;ipc=1;source=2", "B", "accuracy", "83.3", "paper", ""))
    table = R.compare(book.frame(), theirs, "Table 1", reported_table="Table 9", settings=["res", "ipc"])
    # the better source wins
    assert table.to_dict("records") == [{"method": "B", "accuracy (%) · reproduced": "80.0",
                                         "accuracy (%) · reported": "83.3"}]


def test_compare_by_columns():
    book = Results("toy", "demo")
    for method, base in (("A", 80), ("B", 70)):
        for k in (1, 2):
            for res in ("8x8", "16x16"):
                book.add("T", "d", method, f"recall_at_{k}", base + k, 0, {"res": res})
    wide = R.compare(book.frame(), None, "T", columns="metric")
    assert list(wide) == ["res", "method", "Recall@1 (%)", "Recall@2 (%)", "reported"]
    assert (wide["reported"] == "—").all() and len(wide) == 4
    tall = R.compare(book.frame(), None, "T", columns=["res"])
    assert list(tall) == ["method", "metric", "res 8x8", "res 16x16", "reported"]
    assert tall["metric"].tolist()[:2] == ["Recall@1 (%)", "Recall@2 (%)"]
    with pytest.raises(ValueError, match="no key colour; its keys are dataset, res, method, metric"):
        R.compare(book.frame(), None, "T", columns="colour")
    with pytest.raises(ValueError, match="no numbers for table 'U'; the tables are: T"):
        R.compare(book.frame(), None, "U")


def test_printed_numbers():
    assert R.format_mean_std(math.nan, math.nan) == "—" and R.format_mean_std(math.inf) == "∞"
    assert R.format_mean_std(-1.25, digits=1) == "−1.2"
    assert R.format_mean_std(0) == "0" and R.format_mean_std(88.04, 0.0, 1) == "88.0 ± 0.0"
    assert R.metric_label("recall_at_8") == "Recall@8 (%)" and R.metric_label("multiply_adds") == "multiply-adds (million)"
    assert R.metric_label("accuracy_drop_vs_teacher_pct") == "accuracy drop vs teacher (%)"
    assert R.metric_label("logreg_accuracy") == "logreg accuracy (%)" and not R.is_percent("confidence")
    assert not R.is_percent("ranking_loss")


def test_columns_of_one_head_stand_together():
    table = pd.DataFrame([["M", "1", "2", "3", "4"]],
                         columns=["method", "clean · none", "dark · none", "clean · FaceBN", "dark · FaceBN"])
    page = R.to_html(table)
    cells = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", page)
    assert cells == ["method", "clean", "dark", "none", "FaceBN", "none", "FaceBN", "M", "1", "3", "2", "4"]
    assert page.count("colspan='2'") == 2


def test_html_is_escaped_grouped_and_aligned():
    frame = R.compare(study([80, 82, 84], [70, 71, 72]).frame(), PAPER.replace({"method": {"X": "<b>X</b> & co"}}),
                      "Table 1")
    page = R.to_html(frame, caption="1 < 2")
    assert "&lt;b&gt;X&lt;/b&gt; &amp; co" in page and "1 &lt; 2" in page and "<b>X" not in page
    assert "colspan='2'" in page and ">reproduced</th>" in page and ">reported</th>" in page
    assert re.search(r"text-align:right;white-space:nowrap'><strong>82\.0 ± 2\.0<", page)
    assert re.search(r"text-align:left;white-space:nowrap'>W<", page)
    assert "† second hand" in page


@pytest.mark.parametrize("index", [pd.Index(["A", "B"]), pd.Index(["A", "B"], name="method"), pd.Index([0, 1], name="seed"),
                                   pd.MultiIndex.from_tuples([("A", 1), ("B", 2)])])
def test_a_table_whose_rows_have_names_is_refused_for_they_would_not_be_shown(index, capsys):
    frame = pd.DataFrame({"value": ["1", "2"]}, index=index)
    with pytest.raises(ValueError, match=r"table 'T': the names of its rows .*reset_index\(\)"):
        R.show(frame, "T")
    R.show(frame.reset_index()), R.show(pd.DataFrame({"value": ["1", "2", "3"]})[1:])


def test_claims_table_reads_well():
    judged = R.judge([Claim("b", "B beats W", "B", "W"), Claim("gone", "", "nobody", "W")],
                     study([51, 72, 91], [50, 70.9, 90.1]))
    table = R.claims_table(judged)
    assert table["difference"].tolist() == ["+1.00", "—"] and table["verdict"].tolist() == ["supported", "inconclusive"]
    assert table["95 % interval"].tolist() == ["[+0.75, +1.25]", "—"] and table["paper"].tolist() == ["—", "—"]
    assert table["would decide"].tolist() == ["", "not measured"] and table["repeats"].tolist() == ["3 seeds", "0 seeds"]
    assert "source ours: a reading, an ablation or a control of ours" in table.attrs["notes"]


def test_the_result_card_says_what_was_found_and_escapes_it():
    book = study([51, 72, 91], [50, 70.9, 90.1])
    judged = R.judge([Claim("<b>", "", "B", "W"), Claim("w", "", "W", "B", source="sheet")], book)
    page = R.card_html(judged, "data:image/png;base64,AA", "Fig. '1'")
    assert "&lt;b&gt; (+1.00 [+0.75, +1.25])" in page and "<b>" not in page and "✗ 1 not supported" in page
    assert page.count("<img ") == 1 and "Fig. &#x27;1&#x27;" in page and "claims attested" in page
    assert R.headline(judged) == ("Supported: <b> (+1.00 [+0.75, +1.25]). Of 1 further claims 0 supported, "
                                  "1 not supported, 0 inconclusive.")
    assert R.headline(R.judge([], book)) == "" and "<img" not in R.card_html(judged)
    assert R.card_figure(["crowds", "methods-digits", "main"]) == "methods-digits" and R.card_figure(["a"]) == "a"
    assert R.card_figure([]) == ""


def three_methods(rows, metric="accuracy"):
    book = Results("toy", "demo")
    for method, case, value in rows:
        book.add("T", "digits", method, metric, value, 0, {"case": case} if case else {})
    return book.frame()


@pytest.mark.parametrize("rows, metric, columns, expected", [
    ([("A", "", 1), ("B", "", 3), ("teacher on high", "", 9)], "accuracy", "metric", ["3.0"]),
    ([("A", "", 1), ("B", "", 3)], "fid", "metric", ["1.00"]),
    ([("A", "x", 1), ("B", "x", 3), ("A", "y", 5), ("B", "y", 4)], "accuracy", "metric", ["3.0", "5.0"]),
    ([("A", "x", 1), ("B", "x", 3), ("A", "y", 5), ("B", "y", 4)], "accuracy", "case", ["3.0", "5.0"]),
    ([("A", "x", 1), ("A", "y", 5), ("A", "z", 4)], "accuracy", "metric", ["5.0"]),       # a sweep of one method
    ([("A", "", 3), ("B", "", 3), ("C", "", 1)], "accuracy", "metric", ["3.0", "3.0"]),
    ([("A", "", 3), ("B", "", 3)], "accuracy", "metric", []), ([("A", "", 3)], "accuracy", "metric", []),
    ([("A", "", 3), ("B", "", 4)], "steps", "metric", []),                                # neither way is better
])
def test_the_best_number_of_its_kind_is_bold(rows, metric, columns, expected):
    for theirs in (None, reported_rows(["T", "digits", "", "A", metric, "99", "paper", ""])):
        table = R.compare(three_methods(rows, metric), theirs, "T", columns)
        assert sorted(re.findall(r"<strong>(.*?)</strong>", R.to_html(table))) == expected
        assert any(note.startswith("bold: the best") for note in table.attrs["notes"]) == bool(expected)


# ---- what a printed table remembers

def test_a_table_is_made_again_from_its_layout():
    frame = study([3, 4, 5], [1, 2, 3]).frame()
    ours = reported_rows(["Table 9", "digits", "res=3x3", "B", "accuracy", "4.2", "paper", ""])
    for choice in ({}, {"columns": ["method"]}, {"columns": "dataset", "where": {"method": "B"}, "repetitions": "sets"},
                   {"reported_table": "Table 9", "settings": ["res"]}):
        table = R.compare(frame, ours, "Table 1", **choice)
        layout = dict(table.attrs["layout"])
        assert layout.pop("beside")
        assert layout == {"columns": ["metric"], "repetitions": "seeds", "table": "Table 1"} | choice | (
            {"columns": ["dataset"]} if choice.get("columns") == "dataset" else {})
        again = R.compare(frame, ours, **layout)
        assert again.equals(table) and again.attrs == table.attrs
    assert R.compare(frame, None, "Table 1").attrs["layout"]["beside"] is False
    with pytest.raises(ValueError, match="every key heads a column"):
        R.compare(frame, None, "Table 1", ["dataset", "res", "method", "metric"])


def test_the_numbers_of_a_table_lead_where_they_are_sent():
    frame = study([3, 4], [1, 2]).frame()
    ours = reported_rows(["Table 1", "digits", "res=3x3", "B", "accuracy", "4.2", "paper", ""])
    table = R.compare(frame, ours, "Table 1")
    assert table.attrs["numbers"] == {"accuracy (%) · reproduced": ""}
    page = R.to_html(table,
                     link=lambda row, name: f"#{table.at[row, 'method']}<" if name in table.attrs["numbers"] else "")
    assert re.findall(r"<a href='([^']+)'>([^<]+)</a>", page) == [("#B&lt;", "3.5 ± 0.7"), ("#W&lt;", "1.5 ± 0.7")]
    across = R.compare(frame, None, "Table 1", ["method"])
    assert across.attrs["numbers"] == {"B": "B", "W": "W"} and "<a " not in R.to_html(across)


@pytest.mark.parametrize("mean, std, text", [(1e308, math.nan, "1.00e+308"), (1e300, 1e299, "1.00e+300 ± 1.00e+299"),
                                             (5.0, 1e13, "5.00e+00 ± 1.00e+13"),
                                             (123456.0, math.nan, "123456"), (-math.inf, 1.0, "−∞")])
def test_numbers_beyond_all_measure_stay_short(mean, std, text):
    assert R.format_mean_std(mean, std) == text


def test_claims_that_are_none_are_refused(tmp_path):
    judged = R.judge([Claim("a", "", "B", "W")], study([3, 4, 6], [1, 2, 3]))
    for column, value, says in (("kind", "lesser", "kind 'lesser' is none of greater, at least"),
                                ("verdict", "maybe", "verdict 'maybe' is none of"),
                                ("n", "2.5", "n must be a whole number"), ("n", "", "n must be"),
                                ("source", "poster", "source 'poster' is none of paper, sheet, ours"),
                                ("holm", "maybe", "holm 'maybe' is none of"), ("made", "-1", "made must be a whole number"),
                                ("ci_low", "x", "'x' in the column ci_low")):
        judged.astype(object).assign(**{column: value}).to_csv(tmp_path / "claims.csv", index=False)
        with pytest.raises(ValueError, match=f"claims.csv: .*{says}"):
            R.read_claims(tmp_path / "claims.csv")
    judged.drop(columns=list(R.MORE)).to_csv(tmp_path / "claims.csv", index=False)                # an older run
    old = R.read_claims(tmp_path / "claims.csv")
    assert old["source"].item() == old["holm"].item() == "" and old["made"].item() == 3 and math.isnan(old["reported"].item())
    assert R.claims_table(old)["repeats"].item() == "3 seeds" and R.closing(old)[0].startswith("Of 1 claim the run finds")
    judged.drop(columns="n").to_csv(tmp_path / "claims.csv", index=False)
    with pytest.raises(ValueError, match="columns missing: n"):
        R.read_claims(tmp_path / "claims.csv")
