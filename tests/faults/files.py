"""Data files that nobody should train on, a hundred and more, each shown to the command line.

    Case("cut.jsonl", b'{"source": "a", "tar')  ->  error: cut.jsonl, row 1 (the last line) is cut off; …

Each file is told, in one line and within seconds, or read; a traceback, a second line and silence are faults.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults.attempt import Outcome, command, fault_of, forked

SECONDS, MEMORY = 20, 2 << 30
"""What reading a file may take: more than two seconds on a busy machine, and 2 GiB."""


@dataclass(frozen=True)
class Case:
    """A file or folder for DATA, and what has to come of it."""

    name: str
    """Its name under the working directory."""
    make: bytes | Callable[[Path], None]
    """Its content, or what makes it at its path."""
    told: bool = True
    """Whether it has to be refused; otherwise it may also be read, row for row."""


def cases() -> list[Case]:
    """All of them, in a fixed order with names of their own."""
    return [*_broken_jsonl(), *_broken_csv(), *_broken_json(), *_broken_parquet(), *_values(), *_places()]


def _rows(count: int, **values: object) -> list[dict[str, object]]:
    return [{"source": f"Das {i}. Kind liest.", "target": f"Child number {i} reads."} | values for i in range(count)]


def _lines(rows: list[dict[str, object]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


GOOD = _lines(_rows(40))


def _broken_jsonl() -> Iterator[Case]:
    whole = _lines(_rows(3))
    yield Case("empty.jsonl", b"")
    yield Case("spaces.jsonl", b"  \n\n \t \n")
    yield Case("mark-alone.jsonl", b"\xef\xbb\xbf")
    for cut in (1, 9, 20, 33, 50, len(whole) - 2):
        yield Case(f"cut-{cut}.jsonl", whole[:cut])
    for name, encoding in (("utf-16", "utf-16"), ("utf-32", "utf-32"), ("latin-1", "latin-1"), ("cp1252", "cp1252")):
        text = _lines(_rows(3, source="Die Bücher – schön")).decode()
        yield Case(f"{name}.jsonl", text.encode(encoding, errors="replace"), told=name != "utf-16")
    yield Case("zeros.jsonl", bytes(4096))
    yield Case("noise.jsonl", bytes(range(256)) * 16)
    yield Case("zero-in-text.jsonl", GOOD.replace(b"Kind", b"K\x00nd"))
    for name, row in {
        "number": b"7",
        "text": b'"a"',
        "null": b"null",
        "list": b'["a", "b"]',
        "true": b"true",
        "single-quotes": b"{'source': 'a', 'target': 'b'}",
        "comma": b'{"source": "a", "target": "b",}',
        "comment": b'{"source": "a", "target": "b"} // fine',
        "two-on-a-line": b'{"source": "a", "target": "b"}{"source": "c", "target": "d"}',
        "unquoted": b'{source: "a", target: "b"}',
        "deep": b'{"source": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "digits": b'{"source": "a", "target": "b", "margin": ' + b"9" * 309 + b"}",
        "many-digits": b'{"source": "a", "target": "b", "margin": ' + b"9" * 5000 + b"}",
    }.items():
        yield Case(f"row-{name}.jsonl", GOOD + row + b"\n", told=name != "digits")
    yield Case("half-character.jsonl", GOOD + rb'{"source": "\ud83d", "target": "b"}' + b"\n", told=False)
    yield Case("key-twice.jsonl", GOOD + b'{"source": "a", "source": "c", "target": "b"}\n')
    yield Case("json-in-jsonl.jsonl", json.dumps(_rows(3), indent=2).encode(), told=False)
    yield Case("carriage-returns.jsonl", GOOD.replace(b"\n", b"\r"))


def _broken_csv() -> Iterator[Case]:
    head = b"source,target\n"
    body = b"".join(b"Kind %d,child %d\n" % (i, i) for i in range(40))
    for name, content in {
        "empty": b"",
        "header-alone": head,
        "open-quote": head + b'"a,b\n',
        "quote-inside": head + b'a"b"c,"d"e\n',
        "one-cell-more": head + body + b"a,b,c\n",
        "one-cell-less": head + body + b"a\n",
        "twins": b"source,source,target\na,b,c\n",
        "no-header": body,
        "zeros": bytes(2048),
        "noise": bytes(range(256)) * 8,
    }.items():
        yield Case(f"{name}.csv", content)
    for name, mark in (("semicolons", b";"), ("tabs", b"\t"), ("bars", b"|")):
        yield Case(f"{name}.csv", (head + body).replace(b",", mark), told=False)
    yield Case("utf-16.csv", (head + body).decode().encode("utf-16"), told=False)
    yield Case("sep-line.csv", b"sep=;\n" + (head + body).replace(b",", b";"), told=False)
    yield Case("returns.csv", (head + body).replace(b"\n", b"\r"), told=False)
    yield Case("wide.csv", b",".join(b"c%d" % i for i in range(100_000)) + b"\n" + b",".join([b"1"] * 100_000) + b"\n")


def _broken_json() -> Iterator[Case]:
    for name, content in {
        "empty": b"",
        "null": b"null",
        "number": b"3",
        "text": b'"rows"',
        "no-rows": b"[]",
        "numbers": b"[1, 2, 3]",
        "two-lists": b'{"train": [{"source": "a", "target": "b"}], "test": [{"source": "c", "target": "d"}]}',
        "nested": b'{"data": {"rows": []}}',
        "cut": b'[{"source": "a", "target": "b"}, {"source": ',
        "deep": b"[" * 100_000,
        "nan": b'[{"source": NaN, "target": Infinity}]',
        "by-column": b'{"source": {"0": "a"}, "target": {"0": "b"}}',
    }.items():
        yield Case(f"{name}.json", content)
    bomb = zlib.compressobj(wbits=31)
    spaces = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(1024)) + bomb.flush()
    yield Case("bomb.json.gz", spaces)
    yield Case("bomb.jsonl.gz", spaces)
    yield Case("cut.jsonl.gz", gzip.compress(GOOD)[:-9])
    yield Case("no-gzip.jsonl.gz", GOOD)
    yield Case("twice-packed.jsonl.gz", gzip.compress(gzip.compress(GOOD)))
    yield Case("tail.jsonl.gz", gzip.compress(GOOD) + b"rest")


def _parquet(columns: dict[str, list[object]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


def _broken_parquet() -> Iterator[Case]:
    good = _parquet({"source": [f"Kind {i}" for i in range(40)], "target": [f"child {i}" for i in range(40)]})
    yield Case("empty.parquet", b"")
    yield Case("text.parquet", GOOD)
    yield Case("no-rows.parquet", _parquet({"source": [], "target": []}))
    yield Case("numbers.parquet", _parquet({"source": [1, 2, 3], "target": [4, 5, 6]}))
    yield Case("bytes.parquet", _parquet({"source": [b"\xff", b"\xfe"], "target": [b"a", b"b"]}))
    yield Case("nulls.parquet", _parquet({"source": [None, None], "target": [None, None]}))
    yield Case("lists.parquet", _parquet({"source": [["a"], ["b"]], "target": [["c"], ["d"]]}))
    for cut in (4, len(good) // 2, len(good) - 1, len(good) - 6):
        yield Case(f"cut-{cut}.parquet", good[:cut])
    for place in (5, len(good) // 2, len(good) - 20):
        flipped = bytearray(good)
        flipped[place] ^= 0x55
        yield Case(f"flipped-{place}.parquet", bytes(flipped), told=False)


def _values() -> Iterator[Case]:
    """Whole files whose values no row can be made of."""
    wrong: dict[str, object] = {
        "null": None,
        "empty": "",
        "spaces": " \n\t",
        "number": 3,
        "true": True,
        "list": ["a", "b"],
        "object": {"text": "a"},
        "nested": [[["a"]]],
    }
    for name, value in wrong.items():
        yield Case(f"source-{name}.jsonl", _lines(_rows(4, source=value)))
        yield Case(f"target-{name}.jsonl", _lines(_rows(4, target=value)))
    prompt, answer = {"prompt": "Hi"}, {"completion": "Hello."}
    for name, score in {"text": "good", "nan": float("nan"), "infinite": float("inf"), "list": [1, 2]}.items():
        yield Case(f"score-{name}.jsonl", _lines([prompt | answer | {"score": score}] * 4))
    for name, messages in {
        "text": "Hi",
        "empty": [],
        "numbers": [1, 2],
        "no-role": [{"content": "Hi"}, {"content": "Hello"}],
        "strange-role": [{"role": "wizard", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
        "no-answer": [{"role": "user", "content": "Hi"}],
        "answer-alone": [{"role": "assistant", "content": "Hello"}],
        "image-alone": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "Hello"}],
    }.items():
        yield Case(f"messages-{name}.jsonl", _lines([{"messages": messages}] * 4))
    pair = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    yield Case("same-pair.jsonl", _lines([pair | {"rejected": "Hello."}] * 4))
    yield Case("negative-margin.jsonl", _lines([pair | {"margin": -1}] * 4))
    yield Case("one-row.jsonl", _lines(_rows(1)))
    yield Case("one-row-often.jsonl", _lines(_rows(1) * 50))
    yield Case("other-columns.jsonl", _lines([{"foo": "a", "bar": "b"}] * 4))


def _places() -> Iterator[Case]:
    """What stands where a file is expected, and is none."""

    def linked_to_itself(path: Path) -> None:
        path.symlink_to(path.name)

    def linked_to_nothing(path: Path) -> None:
        path.symlink_to("nowhere")

    def in_folder(*files: tuple[str, bytes]) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            path.mkdir()
            for name, content in files:
                (path / name).write_bytes(content)

        return make

    yield Case("loop.jsonl", linked_to_itself)
    yield Case("nowhere.jsonl", linked_to_nothing)
    yield Case("pipe.jsonl", os.mkfifo)
    yield Case("device.jsonl", lambda path: path.symlink_to("/dev/zero"))
    yield Case("random.csv", lambda path: path.symlink_to("/dev/urandom"))
    yield Case("folder.jsonl", Path.mkdir)
    yield Case("folder", in_folder())
    yield Case("other-kinds", in_folder(("notes.txt", b"a"), ("model.bin", b"b")))
    yield Case("test-alone", in_folder(("test.jsonl", GOOD)))
    yield Case("one-empty", in_folder(("train.jsonl", GOOD), ("more.jsonl", b"")))
    yield Case("two-layouts", in_folder(("a.jsonl", GOOD), ("b.jsonl", _lines([{"foo": 1}]))))
    yield Case("pipe-inside", lambda path: (path.mkdir(), os.mkfifo(path / "a.jsonl"))[0])
    yield Case("sheet.xlsx", b"PK\x03\x04")
    yield Case("no-suffix", GOOD)
    yield Case("a" * 300 + ".jsonl", lambda path: None)
    yield Case("missing.jsonl", lambda path: None)


def outcomes(folder: Path, done: set[str]) -> Iterator[Outcome]:
    """Shows each file to the recipe that its columns suit."""
    for case in cases():
        if case.name in done:
            continue
        path = folder / case.name
        if isinstance(case.make, bytes):
            path.write_bytes(case.make)
        else:
            case.make(path)
        ended = forked(command(_argv(case), folder), folder / "output", SECONDS, MEMORY)
        fault = None if ended.status == 0 and not case.told else fault_of(ended)
        read = ended.status == 0 and not case.told
        detail = fault or ("read" if read else ended.errors.strip())
        yield Outcome("files", case.name, "fell" if fault else "same" if read else "told", detail, ended.seconds)
        if len(path.name) < 255:  # else no such file could be made
            _remove(path)


def _argv(case: Case) -> tuple[str, ...]:
    recipe = "dialogue" if case.name.startswith(("score", "messages", "same-pair", "negative")) else "translation"
    return "show", recipe, "--data", case.name


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path)
