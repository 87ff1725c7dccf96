"""What a CSV parts its cells by is known from its rows, and no line of it is passed over or taken for another."""

from __future__ import annotations

import codecs
import gzip
from pathlib import Path

import pytest

from rlrecipes.data.files import read
from rlrecipes.data.load import load
from rlrecipes.errors import UserError
from rlrecipes.recipe import load_recipe

ROWS = [{"source": f"Kahn {i}, rot", "target": f"Boat {i}", "note (free, short)": "x; y"} for i in range(4)]


def written(delimiter: str, rows: list[dict[str, str]] = ROWS) -> str:
    """A table without quotes, where no cell needs any."""
    return "".join(f"{delimiter.join(cells)}\r\n" for cells in (rows[0].keys(), *(row.values() for row in rows)))


def values(path: Path, content: str | bytes) -> list[dict[str, object]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [dict(row.values) for row in read(path)]


@pytest.mark.parametrize("delimiter", ["\t", "|"])
def test_a_comma_in_the_name_of_a_column_parts_nothing_where_the_rows_are_parted_otherwise(tmp_path, delimiter):
    assert values(tmp_path / "rows.csv", written(delimiter)) == ROWS


@pytest.mark.parametrize("first", ['"sep=;"\n', "SEP=;\r\n"])
def test_the_line_that_names_the_delimiter_may_be_quoted_or_in_capitals(tmp_path, first):
    rows = [{"a,b": "1", "c": "2"}]
    assert values(tmp_path / "rows.csv", first + written(";", rows)) == rows


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_a_header_between_the_rows_is_refused_and_not_read_as_a_row(tmp_path, mark, quote):
    part = f"{quote}source{quote},{quote}target{quote}\nJa,Yes\n"
    with pytest.raises(UserError, match="row 2 is the header once more; delete the line"):
        values(tmp_path / "rows.csv", part + mark + part)


def test_columns_without_a_name_are_told_apart_by_their_place(tmp_path):
    read_rows = values(tmp_path / "rows.csv", ",,source\n0,seen,Ja\n")
    assert read_rows == [{"column 1": "0", "column 2": "seen", "source": "Ja"}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_second_byte_order_mark_is_no_part_of_the_text(tmp_path, name):
    text = "\ufeff\ufeff" + ("a\n1\n" if name == "rows.csv" else '{"a": "1"}\n\ufeff{"a": "1"}\n')
    assert {tuple(row.items()) for row in values(tmp_path / name, text)} == {(("a", "1"),)}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("text", ["source,target\nJa,Yes\n", '{"source": "Ja"}\n'])
def test_utf_16_without_its_mark_is_refused_as_what_it_is(tmp_path, encoding, text):
    assert values(tmp_path / "rows.csv", codecs.BOM_UTF16_LE + "a\n1\n".encode("utf-16-le")) == [{"a": "1"}]
    with pytest.raises(UserError, match=r"begins with a null byte, as UTF-16 .*; save the file as UTF-8"):
        values(tmp_path / ("rows.csv" if "," in text else "rows.jsonl"), text.encode(encoding))


def test_a_quote_that_swallowed_rows_is_told_with_the_row(tmp_path):
    lines = [f"Kahn {i}\tBoat {i}" for i in range(30)]
    whole = "\n".join(["source\ttarget", *lines[:4], '"Kahn\tBoat', 'Fluss"\tRiver', *lines[7:], ""])
    (tmp_path / "rows.tsv").write_text(whole)
    notes = load(load_recipe("translation"), str(tmp_path / "rows.tsv"), {}, tmp_path).notes
    assert any(note.startswith("Row 5 holds a tab and a line end within quotes") for note in notes)


def test_a_packed_file_without_its_ending_is_told_as_one(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(gzip.compress(b'{"source": "Kahn", "target": "Boat"}\n'))
    with pytest.raises(UserError, match=r"rows\.jsonl is packed with gzip; add \.gz to its name"):
        read(tmp_path / "rows.jsonl")
