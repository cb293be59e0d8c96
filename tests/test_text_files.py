"""Shards of text: lines, tables, what a name stands for, and files that are no text."""

import gzip
import json
import pickle
from collections import Counter
from types import SimpleNamespace

import pytest
from datasets import Dataset, IterableDataset
from torch.utils.data import DataLoader

from heirloom.objectives.streams import Stream
from heirloom.training import text_files
from heirloom.training.text_files import TableShard, TextFile, count_words, open_shards

ROWS = ["the cat", "", "a dog , a mat", None, "  ", "café"]
KEPT = ["the cat", "a dog , a mat", "café"]


def split(lines: list) -> list[list[str]]:
    return [line.split() if isinstance(line, str) else line for line in lines]


def as_lists(*matrices: list[list]) -> list:
    return list(matrices)


def written(folder, name: str, content: bytes | str):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def table(folder, name: str, rows=ROWS, column: str = "text"):
    data, path = Dataset.from_dict({"number": list(range(len(rows))), column: rows}), folder / name
    if name.lower().endswith((".json", ".jsonl")):
        lines = [json.dumps({"number": number, column: row}) for number, row in enumerate(rows)]
        return written(folder, name, "\n".join(lines))
    data.to_parquet(path) if name.endswith(".parquet") else data.to_csv(
        path, sep="\t" if name.endswith(".tsv") else ",", index=False
    )
    return path


def test_lines_have_no_ends_and_no_mark(tmp_path):
    content = "\ufeffone two\r\n\n \t\r\n café\rx\x85y\u2028z \nlast"
    file = TextFile(written(tmp_path, "a.txt", content))
    assert list(file) == list(file) == ["one two", " café\rx\x85y\u2028z ", "last"]
    assert list(TextFile(file.path, keep_blank=True)) == [
        "one two",
        "",
        " \t",
        " café\rx\x85y\u2028z ",
        "last",
    ]
    assert list(pickle.loads(pickle.dumps(file))) == list(file)
    assert str(file) == str(tmp_path / "a.txt")


def test_a_file_is_read_line_by_line(tmp_path):
    path = written(tmp_path, "a.txt", b"good\n" * 10 + b"\xff\n")
    lines = iter(TextFile(path))
    assert [next(lines) for _ in range(10)] == ["good"] * 10
    with pytest.raises(ValueError, match="line 11"):
        next(lines)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\ngood\nba\xe9d\n", "line 3, is no UTF-8 at byte 2 of the line .*Convert it to UTF-8"),
        (b"\xed\xa0\x80", "line 1, is no UTF-8 at byte 0 of the line"),
        (b"good\n\0\0\0\0", "line 2, holds NUL bytes, .* binary or damaged file.*convert them to UTF-8"),
        ("good".encode("utf-16"), "line 1, holds NUL bytes"),
        (gzip.compress(b"good\n" * 9, mtime=0), "line 1, (holds NUL bytes|is no UTF-8).*[Cc]onvert"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, message):
    path = written(tmp_path, "a.txt", content)
    with pytest.raises(ValueError, match=message) as caught:
        list(TextFile(path))
    assert str(caught.value).startswith(f"{path}, line ")


def test_endless_lines_are_refused_and_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_LINE", 10)
    monkeypatch.setattr(text_files, "LONGEST_READ", 44)
    fitting = "é" * 10
    assert list(TextFile(written(tmp_path, "a.txt", f"{fitting}\r\n{fitting}\n{fitting}"))) == [fitting] * 3
    too_long = "more than 10 characters; one sentence a line is expected. Split it."
    for content, size in (("x\n" + "é" * 11, "11 characters"), ("x\n" + "y" * 999, "at least 44 bytes")):
        path = written(tmp_path, "a.txt", content)
        with pytest.raises(ValueError, match=f"a.txt, line 2, has {size}, {too_long}"):
            list(TextFile(path))


def test_the_longest_line_is_a_million_characters(tmp_path):
    longest = "日" * 1_000_000
    assert list(TextFile(written(tmp_path, "a.txt", longest + "\n"))) == [longest]
    with pytest.raises(ValueError, match="line 1, has 1,000,001 characters, more than 1,000,000"):
        list(TextFile(written(tmp_path, "a.txt", longest + "x\n")))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a[1] b.JSONL"])
def test_tables_give_their_column(tmp_path, name):
    (shard,) = open_shards(str(table(tmp_path, name)))
    assert isinstance(shard, TableShard)
    assert list(shard) == list(shard) == KEPT
    assert list(pickle.loads(pickle.dumps(shard))) == KEPT
    (shard,) = open_shards(str(table(tmp_path, name, column="story")), text_column="story")
    assert list(shard) == KEPT


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_tables_may_hold_words(tmp_path, name):
    path = table(tmp_path, name, [["the", "cat"], [], ["a b", ""]], "words")
    assert list(TableShard(str(path))) == [["the", "cat"], ["a b", ""]]
    assert list(TableShard(str(path), keep_blank=True)) == [["the", "cat"], [], ["a b", ""]]


def test_blank_texts_are_kept_when_asked_for(tmp_path):
    path = str(table(tmp_path, "a.jsonl"))
    assert list(TableShard(path, keep_blank=True)) == [row for row in ROWS if row is not None]


def test_tables_in_workers_are_read_whole_by_each(tmp_path):
    """`datasets` would deal the parts of a table to the workers."""
    path = table(tmp_path, "a.jsonl", [f"a{row} b c" for row in range(2500)])
    batches = [
        list(
            DataLoader(
                Stream(open_shards(str(path)), split, as_lists, 16, 5, ("<S>", "</S>"), one_pass=True),
                batch_size=None,
                num_workers=workers,
            )
        )
        for workers in (0, 2)
    ]
    assert len(batches[0]) > 124
    assert batches[0] == batches[1]


def test_tables_with_something_else_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="no column 'story' with text: the data has .*'text'.*Name one of them"
    ):
        list(TableShard(str(table(tmp_path, "a.jsonl")), "story"))
    with pytest.raises(ValueError, match=r"no column with text: expected one of \['text', 'sentence'"):
        list(TableShard(str(table(tmp_path, "a.jsonl", column="story"))))
    with pytest.raises(
        ValueError, match="a.parquet, row 1: the column 'text' holds int '7'; expected a text or a"
    ):
        list(TableShard(str(table(tmp_path, "a.parquet", [7, 8]))))
    for broken in (b'{"text": "good"}\n{"text": ', b'{"text": "ba\xe9d"}\n'):
        path = written(tmp_path, "broken.jsonl", broken)
        with pytest.raises(ValueError, match="cannot read .*broken.jsonl: .*Is the file complete and UTF-8"):
            list(TableShard(str(path)))


def test_sources_are_files_patterns_and_folders(tmp_path):
    for name in ("b.txt", "a.txt", "in/c.txt", "in/notes.md", ".git/d.txt", "news.en-00001-of-00100"):
        written(tmp_path, name, name)
    table(tmp_path, "in/a.jsonl")

    def names(*sources):
        return [str(shard).removeprefix(f"{tmp_path}/") for shard in open_shards([*sources])]

    assert names(str(tmp_path)) == ["a.txt", "b.txt", "in/a.jsonl", "in/c.txt"]
    assert names(f"{tmp_path}/*.txt") == ["a.txt", "b.txt"]
    assert names(f"{tmp_path}/**/*.txt") == ["a.txt", "b.txt", "in/c.txt"]
    assert names(f"{tmp_path}/news*") == ["news.en-00001-of-00100"]
    assert names(str(tmp_path / "b.txt"), f"{tmp_path}/in") == ["b.txt", "in/a.jsonl", "in/c.txt"]
    assert names(tmp_path / "b.txt") == ["b.txt"]
    assert [list(shard) for shard in open_shards(str(tmp_path / "news*"))] == [["news.en-00001-of-00100"]]
    kept = open_shards(f"{tmp_path}/in", keep_blank=True)
    assert [shard.keep_blank for shard in kept] == [True, True]


def test_sources_that_are_not_there(tmp_path):
    (tmp_path / "empty").mkdir()
    for source in (f"{tmp_path}/*.txt", str(tmp_path / "a.txt"), "a.txt", "a/b/c", "./a"):
        with pytest.raises(
            FileNotFoundError, match="no file matches .*expected a file, a pattern, a folder or"
        ):
            open_shards([source])
    with pytest.raises(FileNotFoundError, match="no file matches .*empty: the folder has none that ends in"):
        open_shards(str(tmp_path / "empty"))
    with pytest.raises(
        FileNotFoundError, match="no file matches 'nobody/nothing'; .*Check its spelling, the split"
    ):
        open_shards("nobody/nothing")
    with pytest.raises(ValueError, match="sources is empty; expected a file"):
        open_shards([])


def test_files_without_content_are_named(tmp_path):
    written(tmp_path, "a.txt", "good")
    for name in ("b.txt", "c.jsonl"):
        written(tmp_path, name, b"")
    with pytest.raises(
        ValueError, match=r"found files without content: \S+/b.txt, \S+/c.jsonl; expected text"
    ):
        open_shards(str(tmp_path))


def test_data_sets_of_the_hub_are_read_in_parts(monkeypatch):
    def rows(parts):
        for part in parts:
            for row in range(3):
                yield {"text": f"{part} {row}"}

    asked = []

    def load(name, split, streaming):
        asked.append((name, split, streaming))
        return IterableDataset.from_generator(rows, gen_kwargs={"parts": ["a", "b", "c"]})

    monkeypatch.setattr(text_files, "load_dataset", load)
    shards = open_shards("somebody/something", split="validation")
    assert [str(shard) for shard in shards] == [f"somebody/something (part {part})" for part in range(3)]
    assert [list(shard) for shard in shards] == [[f"{part} {row}" for row in range(3)] for part in "abc"]
    assert set(asked) == {("somebody/something", "validation", True)}


def test_words_are_counted(tmp_path):
    shards = [
        TextFile(written(tmp_path, "a.txt", "a b a\n\nb\n" * 1500), keep_blank=True),
        ["c", ["a", "d e"]],
    ]
    assert count_words(shards, split) == (4502, 6003, Counter({"a": 3001, "b": 3000, "c": 1, "d e": 1}))


@pytest.mark.parametrize("keep_blank", [False, True])
def test_shards_with_blank_lines_only_are_named(tmp_path, keep_blank):
    for name in ("a.txt", "b.txt"):
        written(tmp_path, name, "\n \n")
    shards = open_shards(str(tmp_path), keep_blank=keep_blank)
    with pytest.raises(
        ValueError, match=r"found no sentence in \S+/a.txt, \S+/b.txt; expected lines of text"
    ):
        count_words(shards, split)
    assert count_words([*shards, ["x"]], split)[1] == 1
    with pytest.raises(ValueError, match=r"found no sentence in 0, 1, 2, 3, 4 \.\.\.; expected"):
        count_words([_Named(number) for number in range(6)], split)


class _Named(SimpleNamespace):
    def __init__(self, name):
        super().__init__(name=name)

    def __str__(self):
        return str(self.name)

    def __iter__(self):
        return iter(())
