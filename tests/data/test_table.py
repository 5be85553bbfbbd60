"""A table is read as spreadsheets and people write it, or refused in a sentence."""

from __future__ import annotations

import csv
import io
import json

import pytest

from hida.data.table import Row, read_table
from hida.errors import HidaError

ROWS = [Row("a", "ink", "test"), Row("b/c d", "soft; dark, chalk", "train")]


def saved(folder, text, encoding="utf-8", name="t.csv"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


@pytest.mark.parametrize("separator", [",", ";", "\t", " "])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_rows_are_the_same_whatever_program_saved_them(tmp_path, separator, encoding, end):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end)
    # In a column that is not read: what str.splitlines takes for the end of a line.
    writer.writerows([("note", "name", "style", "split"), *(("a\u2028b\x0bc", *row) for row in ROWS)])
    assert read_table(saved(tmp_path, text.getvalue(), encoding)) == (ROWS, [])


@pytest.mark.parametrize(
    "text",
    [
        "Name,STYLE,Split\na,ink,test\n",
        " name , style,split \n a , ink, test \n",
        '"name"; "style"; "split"\n"a"; "ink"; "Test"\n',
        "split,other,style,name\n\ntest,x,ink,a\n,,,\n",
        "name,style,split\na,ink,test,left,over\n",
        "name   style  split\na      ink    test\n",
        "\n\nname,style,split\na,ink,TEST",
        "sep=;\r\nname;style;split\r\na;ink;test\r\n",
        '"a note\nof two lines",NAME,Style,,split\r\n"one\r\n""more""",a,ink,,test\r\n,,,,\r\n\r\n',
        "name\tstyle\tsplit\t\na\tink\ttest\t\n \t \n",
        "name style split\na ink test \n",
    ],
)
def test_capitals_spaces_order_and_other_columns_do_not_matter(tmp_path, text):
    assert read_table(saved(tmp_path, text)) == ([ROWS[0]], [])


def test_json_has_the_same_columns(tmp_path):
    rows = [{"Name": "a", "style ": "ink", "SPLIT": "Test"}, {"name": "e\u0301", "style": 2, "split": "train"}]
    good = [ROWS[0], Row("\u00e9", "2", "train")]
    assert read_table(saved(tmp_path, json.dumps(rows), name="t.JSON")) == (good, [])


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("t.csv", b"", "has no lines"),
        ("t.csv", b"name,style\n", "has no lines"),
        ("t.csv", b"file,kind\na,ink\n", "'file,kind', without the columns name and style"),
        ("t.csv", "näme,style\n".encode("latin-1"), "not text in UTF-8"),
        ("t.csv", b"\xff\xfen\x00a", "not text in UTF-8|without the columns"),
        ("t.csv", b'name,style,note\na,ink,"x\nb,ink,y\n', "quotation mark is not closed"),
        ("t.csv", b'name,style\n"' + b"x" * 200_000, "field larger"),
        ("t.csv", b"name,style\n" + b"\n" * 600_000, "hundreds of thousands"),
        ("t.json", b"{", "not valid JSON"),
        ("t.json", b"[" * 100_000, "nested too deeply"),
        ("t.json", b'{"name": "a"}', "not a list"),
        ("t.json", b'[{"name": "a", "style": NaN}]', "not a finite number"),
        ("t.json", b'[{"name": "a", "name": "b"}]', "there twice"),
    ],
)
def test_what_is_no_table_is_refused_in_a_sentence(tmp_path, name, data, says):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(HidaError, match=says) as caught:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_split_for_some_lines_alone_is_a_fault_of_the_others(tmp_path):
    good, faults = read_table(saved(tmp_path, "name,style,split\na,ink,test\nb,ink,\n"))
    assert [(row.name, row.split) for row in good] == [("a", "test")]
    assert [fault.name for fault in faults] == ["b"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"split": []}, "split is a list of 0, not train or test"),
        ({"split": {}}, "split is an object of 0 fields"),
        ({"split": 0}, "split is 0"),
        ({"split": False}, "split is false"),
        ({"style": 1.5}, "style is 1.5, not a text or a whole number"),
        ({"style": True}, "style is true"),
        ({"style": ["ink"]}, "style is a list of 1"),
        ({"style": None}, "style is missing"),
        ({"style": " "}, "style is missing"),
        ({"style": "\x1b[31m"}, r"style is '\x1b[31m', which has characters that do not print"),
        ({"style": "ink\u202e"}, r"style is 'ink\u202e'"),
        ({"name": "a\nb"}, r"name is 'a\nb', which has characters that do not print"),
        ({"name": "a\x1b]0;b"}, r"name is 'a\x1b]0;b'"),
        ({"name": 7}, "name is 7, not a text"),
        ({"name": ""}, "name is missing"),
    ],
)
def test_what_is_wrong_in_a_line_is_said_as_it_is_and_prints(tmp_path, row, says):
    good, faults = read_table(saved(tmp_path, json.dumps([{"name": "a", "style": 1} | row]), name="t.json"))
    assert not good
    assert says in faults[0].message
    assert str(faults[0]).isprintable()


def test_names_with_spaces_are_quoted_where_spaces_separate(tmp_path):
    text = 'name style\n"a b" ink\na b ink\n'
    good, faults = read_table(saved(tmp_path, text))
    assert good == [Row("a b", "ink", None)]
    assert "line 2: it has 3 words for 2 columns: put names with spaces in quotes" in faults[0].message


def test_words_of_any_script_and_empty_splits_are_accepted(tmp_path):
    rows = [{"name": "می\u200cخواهم", "style": "a\u00a0b", "split": split} for split in ("", " ", None)]
    good, faults = read_table(saved(tmp_path, json.dumps(rows), name="t.json"))
    assert not faults
    assert {row.split for row in good} == {None}
