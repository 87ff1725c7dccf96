"""Rows come out of files alike, whatever the kind of file; troubles name the file and the row."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rlrecipes.data.files import READERS, find, find_splits, read, rename
from rlrecipes.errors import UserError

ROWS = [{"prompt": "Hello", "score": 1}, {"prompt": "Grüß\u2028Gott", "score": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(path: Path) -> list[dict[str, object]]:
    return [dict(row.values) for row in read(path)]


def trouble(path: Path) -> str:
    with pytest.raises(UserError) as error:
        read(path)
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_the_same_rows_come_from_every_kind_of_file(tmp_path):
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    assert values(write(tmp_path / "rows.jsonl", LINES)) == ROWS
    assert values(write(tmp_path / "rows.jsonl.gz", gzip.compress(LINES.encode()))) == ROWS
    assert values(write(tmp_path / "rows.json", json.dumps(ROWS))) == ROWS
    assert values(write(tmp_path / "held.json", json.dumps({"version": 2, "data": ROWS}))) == ROWS
    assert values(parquet) == ROWS


def test_rows_are_numbered_from_one_in_every_kind_of_file(tmp_path):
    parquet = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    files = [
        write(tmp_path / "rows.jsonl", LINES),
        write(tmp_path / "rows.json", json.dumps(ROWS)),
        write(tmp_path / "held.json", json.dumps({"data": ROWS})),
        write(tmp_path / "rows.csv", "prompt,score\nHello,1\nHi,2\n"),
        parquet,
    ]
    assert [[(row.file, row.number) for row in read(path)] for path in files] == [
        [(str(path), 1), (str(path), 2)] for path in files
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_csv_may_end_its_lines_as_any_system_does(tmp_path, end):
    path = write(tmp_path / "rows.csv", end.join(["prompt,score", "Hello,1", '"a\nb",2', ""]))
    assert values(path) == [{"prompt": "Hello", "score": "1"}, {"prompt": "a\nb", "score": "2"}]


def test_csv_cells_are_text_and_an_empty_cell_is_nothing(tmp_path):
    path = write(tmp_path / "rows.csv", 'prompt, score\n"a, ""b""\nc",1\n\n,2\n')
    assert values(path) == [{"prompt": 'a, "b"\nc', "score": "1"}, {"prompt": None, "score": "2"}]


def test_a_csv_cell_may_hold_a_long_document(tmp_path):
    text = "word " * 50_000
    assert values(write(tmp_path / "rows.csv", f"prompt\n{text}\n")) == [{"prompt": text}]


def test_a_byte_order_mark_is_no_part_of_the_first_name(tmp_path):
    assert values(write(tmp_path / "rows.csv", b"\xef\xbb\xbfprompt\nHello\n")) == [{"prompt": "Hello"}]


def test_blank_lines_are_skipped_and_rows_are_numbered_as_lines(tmp_path):
    rows = read(write(tmp_path / "rows.jsonl", '\n{"a": 1}\r\n\n{"a": 2}'))
    assert [(row.number, row.values) for row in rows] == [(2, {"a": 1}), (4, {"a": 2})]


def test_a_line_that_is_not_json_is_named_by_its_row(tmp_path):
    message = trouble(write(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": }\n{"a": 3}\n'))
    assert "row 2 is not JSON" in message
    assert "column 7" in message


def test_a_truncated_last_line_is_said_to_be_cut_off(tmp_path):
    assert "row 2 (the last line) is cut off" in trouble(write(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": "He'))


def test_a_malformed_last_line_that_is_whole_is_not_said_to_be_cut_off(tmp_path):
    assert "row 2 is not JSON" in trouble(write(tmp_path / "rows.jsonl", '{"a": 1}\n{"a": "He\n'))


def test_json_lines_under_the_name_json_are_read_as_lines(tmp_path):
    assert values(write(tmp_path / "rows.json", "\n" + LINES)) == ROWS
    assert "row 2 (the last line) is cut off" in trouble(write(tmp_path / "rows.json", '{"a": 1}\n{"a": "He'))
    assert "is not JSON" in trouble(write(tmp_path / "rows.json", '{"a": 1} and more\n{"a": 2}'))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv"])
def test_utf_16_is_known_by_its_mark(tmp_path, name, encoding):
    text = LINES if "json" in name else "prompt\tscore\r\n" + "".join(f"{r['prompt']}\t{r['score']}\r\n" for r in ROWS)
    content = (codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b"") + text.encode(encoding)
    rows = values(write(tmp_path / name, content))
    assert [(row["prompt"], int(str(row["score"]))) for row in rows] == [(r["prompt"], r["score"]) for r in ROWS]
    assert "is not UTF-8 text" in trouble(write(tmp_path / name, text.encode("utf-32")))


def test_a_json_object_with_two_lists_does_not_say_which_holds_the_rows(tmp_path):
    assert "an object that holds one list" in trouble(write(tmp_path / "rows.json", '{"a": [{}], "b": [{}]}'))


@pytest.mark.parametrize("value", ["[1]", '"text"', "3", "null"])
def test_a_row_that_is_no_object_is_named(tmp_path, value):
    assert "row 2 is " in trouble(write(tmp_path / "rows.jsonl", f'{{"a": 1}}\n{value}\n'))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", ""), ("a.json", " "), ("a.json", "[]"), ("a.csv", "x\n")])
def test_an_empty_file_is_an_error(tmp_path, name, content):
    assert "is empty" in trouble(write(tmp_path / name, content))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv"])
def test_text_that_is_not_utf8_is_named_by_its_line(tmp_path, name):
    assert "line 2 is not UTF-8" in trouble(write(tmp_path / name, '{"a": 1}\n{"a": "Grüße"}\n'.encode("latin-1")))


def test_an_open_quote_in_a_csv_is_an_error(tmp_path):
    assert "is not CSV" in trouble(write(tmp_path / "rows.csv", 'a,b\n1,"2\n'))


def test_a_column_that_is_there_twice_is_told_and_not_read(tmp_path):
    assert "has the column 'b' 2 times" in trouble(write(tmp_path / "rows.csv", "a,b,b\n1,2,3\n"))
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_arrays([pyarrow.array(["1"]), pyarrow.array(["2"])], names=["a", "a"])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert "has the column 'a' 2 times" in trouble(tmp_path / "rows.parquet")


def test_a_csv_row_with_too_many_cells_is_named(tmp_path):
    assert "row 2 has 3 cells under a header of 2" in trouble(write(tmp_path / "rows.csv", "a,b\n1,2\n1,2,3\n"))


def test_a_broken_parquet_file_is_an_error(tmp_path):
    message = trouble(write(tmp_path / "rows.parquet", "PAR1 and no more"))
    assert re.search(r"cannot be read as Parquet \(.{20,}\); check", message)


def test_a_broken_gzip_file_is_an_error(tmp_path):
    assert "cannot be read" in trouble(write(tmp_path / "rows.jsonl.gz", gzip.compress(LINES.encode())[:-9]))


def test_a_folder_gives_its_data_files_by_name(tmp_path):
    for name in ("b.csv", "a.jsonl", "README.md", ".hidden.jsonl"):
        write(tmp_path / name, "x")
    assert [path.name for path in find(str(tmp_path))] == ["a.jsonl", "b.csv"]


def test_a_folder_without_data_files_is_an_error(tmp_path):
    write(tmp_path / "README.md", "x")
    with pytest.raises(UserError, match=r"holds no data files; .*\.jsonl"):
        find(str(tmp_path))


def test_a_file_that_is_not_there_is_answered_with_the_nearest_that_is(tmp_path):
    write(tmp_path / "train.jsonl", LINES)
    with pytest.raises(UserError, match=r"no file or folder .*trian.jsonl'; did you mean '.*train.jsonl'"):
        find(str(tmp_path / "trian.jsonl"))


def test_an_unknown_kind_of_file_is_answered_with_the_known_ones(tmp_path):
    with pytest.raises(UserError, match=r"rows.xlsx .*\.jsonl, \.json, \.csv, \.tsv, \.parquet, \.arrow"):
        find(str(write(tmp_path / "rows.xlsx", "x")))


def test_renamed_columns_may_trade_places_and_hide_others(tmp_path):
    rows = read(write(tmp_path / "rows.jsonl", '{"a": 1, "b": 2, "c": 3}\n'))
    assert rename(rows, {"a": "b", "b": "a"})[0].values == {"a": 2, "b": 1, "c": 3}
    assert rename(rows, {"a": "c"})[0].values == {"a": 3, "b": 2}


def test_renaming_a_column_that_is_not_there_is_answered_with_the_nearest(tmp_path):
    rows = read(write(tmp_path / "rows.jsonl", '{"post_edit": "x"}\n'))
    with pytest.raises(UserError, match=r"rows.jsonl: there is no column 'postedit'; did you mean 'post_edit'"):
        rename(rows, {"target": "postedit"})


@pytest.mark.parametrize("mark", [";", "\t", "|"])
@pytest.mark.parametrize("first", ["", "sep={}\n", "sep={}\r\n"])
def test_a_csv_may_part_its_cells_by_other_marks_than_commas(tmp_path, mark, first):
    text = f'{first.format(mark)}prompt{mark}answer\n"a{mark}b"{mark}1,5\n'
    assert values(write(tmp_path / "rows.csv", text)) == [{"prompt": f"a{mark}b", "answer": "1,5"}]


def test_a_csv_of_one_column_may_hold_commas_and_semicolons(tmp_path):
    assert values(write(tmp_path / "rows.csv", 'text\n"a, b; c"\n')) == [{"text": "a, b; c"}]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet", "arrow"])
def test_a_file_of_more_columns_than_any_text_needs_is_refused(tmp_path, kind):
    row = {f"c{i}": "1" for i in range(10_001)}
    path = tmp_path / f"rows.{kind}"
    if kind == "csv":
        write(path, f"{','.join(row)}\n" + f"{','.join(row.values())}\n" * 3)
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    elif kind == "arrow":
        with pyarrow.ipc.new_file(path, (rows := pyarrow.Table.from_pylist([row])).schema) as file:
            file.write_table(rows)
    else:
        write(path, json.dumps(row if kind == "jsonl" else [row]))
    assert "has 10,001 columns, as tables of numbers do; keep those" in trouble(path)


def test_a_gzip_file_that_swells_is_read_no_further_than_a_person_would_pack(tmp_path, monkeypatch):
    monkeypatch.setattr("rlrecipes.data.files.TOLERATED", 1 << 20)
    monkeypatch.setattr("rlrecipes.data.files.CHUNK", 1 << 16)
    path = write(tmp_path / "rows.jsonl.gz", gzip.compress(bytes(1 << 25)))
    assert "unpacks to more than 50 times its size" in trouble(path)
    alike = json.dumps({"source": "Ja", "target": "Yes, and many words more. " * 40}).encode() + b"\n"
    assert "unpacks to more than 50 times" in trouble(write(tmp_path / "alike.jsonl.gz", gzip.compress(alike * 4000)))
    packed = gzip.compress(LINES.encode() * 1000)
    assert len(values(write(tmp_path / "whole.jsonl.gz", packed))) == 2000


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"])
def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path, make):
    make(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="is no regular file"):
        find(str(tmp_path / "rows.jsonl"))
    with pytest.raises(UserError, match="holds no data files"):
        find(str(tmp_path))


def test_what_does_not_fit_into_memory_is_told(tmp_path, monkeypatch):
    def full(path):
        raise MemoryError

    monkeypatch.setitem(READERS, ".jsonl", full)
    assert "does not fit into memory" in trouble(write(tmp_path / "rows.jsonl", LINES))


def test_a_saved_data_set_is_read_with_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(ROWS)
    one.save_to_disk(tmp_path / "one")
    assert [values(path) for path in find(str(tmp_path / "one"))] == [ROWS]
    datasets.DatasetDict({"train": one, "validation": one, "test": one}).save_to_disk(tmp_path / "all")
    train, held_out, notes = find_splits(str(tmp_path / "all"))
    assert [path.parent.name for path in train] == ["train"]
    assert [path.parent.name for path in held_out] == ["test"]
    assert "The held-out split is test." in notes


def test_parquet_may_hold_lists_of_objects(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert values(tmp_path / "rows.parquet") == rows


def test_a_parquet_file_that_swells_is_read_no_further_than_a_person_would_pack(tmp_path, monkeypatch):
    monkeypatch.setattr("rlrecipes.data.files.TOLERATED", 1 << 20)
    text = pyarrow.array(["x" * 10_000])
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 3000), text)})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    assert "unpacks to more than 50 times its size" in trouble(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(path)]
)
def test_what_is_named_as_a_split_and_is_no_file_is_told_and_not_passed_over(tmp_path, make):
    write(tmp_path / "train.jsonl", LINES)
    make(tmp_path / "test.jsonl")
    with pytest.raises(UserError, match=r"test.jsonl is named as a data file and is none"):
        find(str(tmp_path))


@pytest.mark.parametrize("target", ["nowhere", "rows.jsonl"])
def test_a_link_to_no_file_is_told(tmp_path, target):
    (tmp_path / "rows.jsonl").symlink_to(target)
    with pytest.raises(UserError, match="is a link to no file"):
        find(str(tmp_path / "rows.jsonl"))


def test_a_file_of_tabs_may_have_commas_in_its_names(tmp_path):
    assert values(write(tmp_path / "rows.tsv", "source\tnote, free\nJa\tx\n")) == [{"source": "Ja", "note, free": "x"}]


@pytest.mark.parametrize("place", ["b\udce4d.jsonl", "d\udce4r/rows.jsonl", "folder/b\udce4d.jsonl"])
def test_a_name_that_is_no_text_is_refused_before_anything_is_read(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    path = Path(place)
    path.parent.mkdir(exist_ok=True)
    write(path, LINES)
    source = "folder" if place.startswith("folder") else place
    with pytest.raises(UserError, match="a name that is no UTF-8 text; rename it") as error:
        find(source)
    str(error.value).encode()


def test_a_list_of_objects_is_read_also_under_the_name_of_lines(tmp_path):
    for text in (json.dumps(ROWS), json.dumps(ROWS, indent=1)):
        assert values(write(tmp_path / "rows.jsonl", text)) == ROWS
    assert "row 1 is not JSON" in trouble(write(tmp_path / "rows.jsonl", json.dumps(ROWS, indent=1)[:-1]))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_an_object_that_says_two_things_under_one_name_is_refused(tmp_path, name):
    twice = '{"prompt": "Hello", "told": {"by": "Ann", "by": "%s"}}'
    text = f"[{twice}]" if name == "rows.json" else f"{twice}\n"
    assert "an object has 'by' twice" in trouble(write(tmp_path / name, text % "Ben"))
    assert values(write(tmp_path / name, text % "Ann")) == [{"prompt": "Hello", "told": {"by": "Ann"}}]


def test_arrow_is_read_as_a_stream_and_as_a_file_and_no_column_of_it_hides_another(tmp_path):
    table, path = pyarrow.Table.from_pylist(ROWS), tmp_path / "rows.arrow"
    for opened in (pyarrow.ipc.new_file, pyarrow.ipc.new_stream):
        with pyarrow.OSFile(str(path), "wb") as sink, opened(sink, table.schema) as writer:
            writer.write_table(table)
        assert values(path) == ROWS
    twins = table.rename_columns(["prompt", "prompt"])
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, twins.schema) as writer:
        writer.write_table(twins)
    assert "has the column 'prompt' 2 times" in trouble(path)


@pytest.mark.parametrize("name", ["held_out.jsonl", "my-holdout.csv", "Held out.jsonl"])
def test_a_file_that_is_called_held_out_is(tmp_path, name):
    write(tmp_path / "train.jsonl", LINES)
    write(tmp_path / name, LINES if name.endswith("jsonl") else "prompt,score\nHello,1\n")
    train, held_out, _ = find_splits(str(tmp_path))
    assert ([path.name for path in train], [path.name for path in held_out]) == (["train.jsonl"], [name])


def test_what_else_a_folder_holds_is_named(tmp_path):
    write(tmp_path / "train.jsonl", LINES)
    assert not find_splits(str(tmp_path))[2]
    write(tmp_path / "test.ndjson", LINES)
    (tmp_path / "more").mkdir()
    write(tmp_path / ".notes", "x")
    (note,) = find_splits(str(tmp_path))[2]
    assert "more, test.ndjson" in note
    assert ".notes" not in note
