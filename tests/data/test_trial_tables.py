"""Tables as programs write them, cell by cell."""

import numpy as np
import pandas as pd
import pytest

from unimind.data.sources.tables import read_table, whole
from unimind.errors import InputError

ROWS = {"picture": ["p1.png", "a, b.png", "Zoë.png"], "session": ["1", "1", "2"]}
FRAME = pd.DataFrame(ROWS)
KNOWN = ("picture", "session")
FORMS = {
    "pandas": FRAME.to_csv(index=False).encode(),
    "pandas with its index": FRAME.to_csv().encode(),
    "byte-order mark, CRLF": FRAME.to_csv(index=False, lineterminator="\r\n").encode("utf-8-sig"),
    "UTF-16 of a spreadsheet": FRAME.to_csv(index=False, sep="\t").encode("utf-16"),
    "semicolons": FRAME.to_csv(index=False, sep=";").encode(),
    "sep= line": b"sep=;\r\n" + FRAME.to_csv(index=False, sep=";").encode(),
    "tabs in a .csv": FRAME.to_csv(index=False, sep="\t").encode(),
    "R's write.table": b'"picture" "session"\n"1" "p1.png" 1\n"2" "a, b.png" 1\n"3" "Zo\xc3\xab.png" 2\n',
    "R's write.table with tabs": b"picture\tsession\n1\tp1.png\t1\n2\ta, b.png\t1\n3\tZo\xc3\xab.png\t2\n",
    "trailing delimiters of PsychoPy": b'picture,session,\np1.png,1,\n"a, b.png",1,\nZo\xc3\xab.png,2,\n',
    "trailing delimiters without one in the header": b'picture,session\np1.png,1,\n"a, b.png",1,\nZo\xc3\xab.png,2,\n',
    "spaces": b'picture , session\n p1.png , 1\n"a, b.png" ,1\nZo\xc3\xab.png,2\n',
    "spaces before quotes": b'picture, "session"\n"p1.png", "1"\n "a, b.png", 1\nZo\xc3\xab.png, 2\n',
    "inch marks in another column": b'picture,session,note\np1.png,1,5" wide\n"a, b.png",1,\nZo\xc3\xab.png,2,\n',
    "blank rows of a spreadsheet": b'\npicture,session\np1.png,1\n,\n\n"a, b.png",1\nZo\xc3\xab.png,2\n,\n,\n',
    "old Macintosh": FRAME.to_csv(index=False, lineterminator="\r").encode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_program_s_table_is_the_same_rows(tmp_path, form):
    (tmp_path / "t.csv").write_bytes(FORMS[form])
    table = read_table(tmp_path / "t.csv", KNOWN).of_length(3)
    assert {name: table.columns[table.column(name)] for name in KNOWN} == ROWS


def test_rows_know_their_line_and_blank_ones_are_trials_where_their_number_says_so(tmp_path):
    (tmp_path / "t.csv").write_text('picture\np1\n\n"p\n2"\np3\n\n')
    table = read_table(tmp_path / "t.csv", KNOWN)
    assert (table.of_length(3).columns["picture"], table.of_length(3).lines) == (["p1", "p\n2", "p3"], [2, 4, 6])
    assert table.of_length(4).columns["picture"] == ["p1", "", "p\n2", "p3"]
    assert table.of_length(5).columns["picture"] == ["p1", "", "p\n2", "p3", ""]


def test_a_single_column_without_a_header_is_pictures(tmp_path):
    (tmp_path / "t.csv").write_text("3\n1\n2\n")
    assert read_table(tmp_path / "t.csv", KNOWN).columns == {"picture": ["3", "1", "2"]}


@pytest.mark.parametrize("mark", [" ", "\t"])
def test_r_s_row_names_beside_a_single_column(tmp_path, mark):
    (tmp_path / "t.csv").write_text(f'"picture"\n"1"{mark}"p1.png"\n"2"{mark}"p 2.png"\n')
    assert read_table(tmp_path / "t.csv", KNOWN).columns == {"picture": ["p1.png", "p 2.png"]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"picture,session\np1,1\np2,1,oh\n", "line 3: 3 cells, but the header has 2"),
        (b"picture,Picture\np1,1\n", "two columns are called 'Picture'"),
        (b"PK\x03\x04\0\0", "t.csv: a spreadsheet's own file, no text; save it there as a .csv"),
        (b"picture\0\n", r"t.csv: not a text file \(it holds bytes 0\); save it as a .csv"),
        (b"\n\n", "it is empty"),
        (b'picture\np1\n"p2\np3\n', "line 3: a quote opens and never closes"),
        (b'picture,note\np1,"5\np2,x\np3,y', "line 2: a quote opens and never closes"),
        ("picture\nZoë.png\n".encode("latin-1"), "not a text file in UTF-8"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, content, words):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_table(tmp_path / "t.csv", KNOWN)


def test_whole_numbers_are_exact():
    exact = {
        "7": 7,
        "007": 7,
        "1.0": 1,
        "1,0": 1,
        "1e+05": 100000,
        "1e+15": 10**15,
        "9007199254740993": 9007199254740993,
        "12345678901.0": 12345678901,
        " 3 ": 3,
        "-2": -2,
    }
    assert {text: whole(text) for text in exact} == exact
    assert [whole(text) for text in ("1.5", "one", "", "1,000", "1.23457E+11", "1E+18", "nan", "1e9999", "0x1F", "١x")] == [None] * 10
    assert all(whole(np.format_float_positional(value)) == value for value in (1.0, 2.0**40))
