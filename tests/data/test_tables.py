"""Tables of names: whatever stands in a cell is a name, as it is written, and comes back so."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kdnotes.checks import refused
from kdnotes.data.tables import as_texts, read_table, write_table

PLAIN = {"item": ["1e5", "100000", "a b", "x"], "worker": ["007", "7", "7.0", "+7"], "label": ["NA", "nan", "None", "null"]}


def put(path, text, encoding="utf-8"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
    return path


def csv_of(table, delimiter=",", end="\n"):
    return end.join(delimiter.join(row) for row in [list(table), *zip(*table.values())]) + end


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_names_stay_as_written(tmp_path, delimiter, end, encoding):
    path = put(tmp_path / "crowd.csv", csv_of(PLAIN, delimiter, end), encoding)
    assert read_table(path) == PLAIN
    assert read_table(str(path), ["label", "worker"]) == {"label": PLAIN["label"], "worker": PLAIN["worker"]}


@pytest.mark.long
def test_no_name_is_guessed_at_any_length(tmp_path):
    """pandas reads long files in pieces and guesses each piece by itself: 007 and 7 in one, names in the next."""
    workers = ["007", "7"] * 150_000 + ["NA", "x"] * 10_000
    path = put(tmp_path / "long.csv", "item,worker\n" + "\n".join(f"{i},{worker}" for i, worker in enumerate(workers)))
    table = read_table(path)
    assert table["worker"] == workers and set(table["worker"]) == {"007", "7", "NA", "x"} and table["item"][-1] == str(len(workers) - 1)
    put(path, path.read_bytes() + b"\n1,2,3\n")
    assert f"row {len(workers) + 1} has 3 cells for 2 columns" in refused(read_table, path)


def test_quotes_blank_lines_packed_files_and_what_spreadsheets_add(tmp_path):
    quoted = '\n"item";"label; as chosen"\n"a;b";"say ""no"""\n\n"two\nlines";5" nail\n;;\n'
    assert read_table(put(tmp_path / "q.csv", quoted)) == {"item": ["a;b", "two\nlines"], "label; as chosen": ['say "no"', '5" nail']}
    assert read_table(put(tmp_path / "s.csv", "sep=|\nitem|label\n1|2\n")) == {"item": ["1"], "label": ["2"]}
    assert read_table(put(tmp_path / "t.csv", "item,label,\n1,cat,\n2,dog\n")) == {"item": ["1", "2"], "label": ["cat", "dog"]}
    assert read_table(put(tmp_path / "z.csv.gz", gzip.compress(csv_of(PLAIN).encode("utf-8-sig")))) == PLAIN
    assert read_table(put(tmp_path / "i.csv", ",item\n0,a\n1,b\n"), ["item"]) == {"item": ["a", "b"]}
    assert read_table(put(tmp_path / "o.csv", "item\na,b\n".replace(",", ""))) == {"item": ["ab"]}
    header = put(tmp_path / "h.csv", "item;x,y;label\n1;2;3\n")                                              # a comma in a name of a column
    assert read_table(header, ["item", "label"]) == {"item": ["1"], "label": ["3"]}


@pytest.mark.parametrize("text, message", [
    ("item,label\n1,\n", r"row 1 has an empty cell in the column 'label'"), ('item,label\n1,2\n"",3\n', "row 2 has an empty cell in the column 'item'"),
    ("item,label\n1\n", "row 1 has 1 cells for 2 columns"), ("item,label\n1,2,3\n", "row 1 has 3 cells for 2 columns"), ("item,label\n", "no rows"),
    ("", "its columns are none"), ("item,item,label\n1,2,3\n", "2 columns called 'item'"), ("thing,label\n1,2\n", "its columns are thing, label; needed are item, label"),
    ('item,label\n"1,2\n', "line 2"), ('item,label\n"1"2,3\n', "line 2"), (b"item,label\n\xe9,2\n", "utf-8"), (b"PK\x03\x04\x00\xff\xfe", "cannot be read")])
def test_what_is_no_table_is_refused_in_one_line(tmp_path, text, message):
    said = refused(read_table, put(tmp_path / "bad.csv", text), ["item", "label"])
    assert message in said and "bad.csv cannot be read" in said and "expected Parquet, or text in UTF-8" in said
    assert "is missing" in refused(read_table, tmp_path / "none.csv") and "a mapping" in refused(read_table, [1, 2])


def test_only_an_empty_cell_is_empty(tmp_path):
    text = "item,truth\na,NA\nb,\nc,NaN\nd,\"\"\ne,-1\n"
    assert read_table(put(tmp_path / "t.csv", text), gaps=["truth"])["truth"] == ["NA", None, "NaN", None, "-1"]
    frame = pd.DataFrame({"truth": ["NA", None, "NaN", "", np.nan, pd.NA]})
    assert read_table(frame, gaps=["truth"])["truth"] == ["NA", None, "NaN", None, None, None]
    assert "row 2 has an empty cell" in refused(read_table, frame)


@pytest.mark.parametrize("values, texts", [
    (["007", "7"], ["007", "7"]), ([7, 12], ["7", "12"]), ([1.0, None, 2.0], ["1", None, "2"]), ([1.0, 2.5], ["1.0", "2.5"]), ([True, False], ["True", "False"]),
    (np.array([3, 2**40]), ["3", str(2**40)]), (pd.Series([1, None], dtype="Int64"), ["1", None]), (pd.Categorical(["b", None, "a"]), ["b", None, "a"]),
    ([pd.NaT, "x"], [None, "x"]), ([np.int32(3), 4], ["3", "4"]), ([2**60 + 1], [str(2**60 + 1)])])
def test_a_frame_keeps_its_types(values, texts):
    assert as_texts(values) == texts and read_table({"a": values}, gaps=["a"])["a"] == texts


def test_two_types_that_are_written_alike_are_refused():
    for values in ([7, "7"], [True, "True"], ["1.5", 1.5]):
        assert "written alike" in refused(as_texts, values)
    assert "expected one length" in refused(read_table, {"a": [1], "b": [1, 2]})
    doubled = pd.DataFrame([["1", "2"]], columns=["a", "a"])
    assert "2 columns called 'a'" in refused(read_table, doubled)


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6)


@settings(max_examples=60)
@example(["\r", "\n", '"', " ", "\ufeff", "\x00", "\u2028", ",;\t"])
@given(st.lists(names, min_size=1, max_size=8))
@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_whatever_is_written_comes_back(tmp_path_factory, ending, cells):
    table = {"name": cells, "gap": [None if i % 3 else name for i, name in enumerate(cells)]}
    path = tmp_path_factory.mktemp("tables") / f"t.{ending}"
    assert read_table(write_table(path, table), gaps=["gap"]) == table
    assert read_table(write_table(path, {"gap": table["gap"]}), gaps=["gap"]) == {"gap": table["gap"]}


def test_a_file_is_what_its_ending_says_or_is_not_written(tmp_path):
    packed = write_table(tmp_path / "crowd.tsv.gz", PLAIN)
    assert gzip.open(packed, "rt", encoding="utf-8").readline() == "item\tworker\tlabel\n" and read_table(packed) == PLAIN
    assert read_table(write_table(tmp_path / "crowd", PLAIN)) == PLAIN
    for name in ("crowd.xlsx", "crowd.json", "crowd.csv.zip"):
        assert "expected .csv, .tsv, .tab, .txt (with .gz: packed), .parquet or .pq" in refused(write_table, tmp_path / name, PLAIN)
        assert not (tmp_path / name).exists()


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\xd0\xcf\x11\xe0"])
def test_a_workbook_is_called_one(tmp_path, start):
    assert "a workbook or an archive; save its sheet as CSV" in refused(read_table, put(tmp_path / "crowd.xlsx", start + bytes(40)))


def test_parquet_and_frames_come_back_too(tmp_path):
    pytest.importorskip("pyarrow")
    big = pd.DataFrame({"item": [2**60 + 1, 7], "truth": pd.array([2**60 + 1, None], dtype="Int64"), "name": ["007", "NA"]})
    expected = {"item": [str(2**60 + 1), "7"], "truth": [str(2**60 + 1), None], "name": ["007", "NA"]}
    big.to_parquet(tmp_path / "theirs.parquet")
    for given_ in (big, tmp_path / "theirs.parquet", write_table(tmp_path / "ours.parquet", big), write_table(tmp_path / "ours.csv", big)):
        assert read_table(given_, gaps=["truth"]) == expected
    put(tmp_path / "bad.parquet", b"PAR1 and no more")
    assert "bad.parquet cannot be read" in refused(read_table, tmp_path / "bad.parquet")
