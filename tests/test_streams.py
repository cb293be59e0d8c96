"""Lanes against a slow twin and against bilm-tf's own batches; orders, workers, processes, resuming."""

import pickle
import random
from collections import Counter
from itertools import chain, islice

import numpy as np
import pytest
import torch
from reference.lanes_naive import halves, lanes, targets_of, without_incomplete
from torch.utils.data import DataLoader

from heirloom.objectives.collators import LanguageModelingCollator
from heirloom.objectives.streams import (
    ElmoStreamCollator,
    Lanes,
    SentenceBatches,
    Sentences,
    Stream,
    TokenStreamCollator,
)
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training.text_files import TextFile

MARKS = ("<S>", "</S>")
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")


class Shard(list):
    """Lines that count how many of them were drawn."""

    drawn = 0

    def __iter__(self):
        for line in super().__iter__():
            self.drawn += 1
            yield line

    def __str__(self):
        return "a shard"


def split(lines: list[str]) -> list[list[str]]:
    return [line.split() for line in lines]


def as_lists(*matrices: list[list]) -> list:
    return [[list(row) for row in matrix] for matrix in matrices]


def as_words(rows: list[dict]) -> list[list[str]]:
    return [row["words"] for row in rows]


def text(lines: int, name: str = "w", longest: int = 9) -> Shard:
    """Lines of words that occur nowhere else; some are blank."""
    draw = random.Random(f"{name} {lines}")
    return Shard(
        " ".join(f"{name}{line}.{word}" for word in range(draw.randrange(longest))) for line in range(lines)
    )


def stream(**changes) -> Stream:
    options = {"shards": [text(11, "a"), text(7, "b"), text(5, "c")], "encode": split, "collate": as_lists}
    options |= {
        "batch_size": 2,
        "unroll_steps": 5,
        "marks": MARKS,
        "bidirectional": True,
        "shuffle_buffer": 4,
    }
    return Stream(**options | changes)


def sentence_batches(**changes) -> SentenceBatches:
    options = {"shards": [text(40, "a"), text(33, "b")], "encode": split, "collate": as_words}
    return SentenceBatches(**options | {"batch_size": 3, "shuffle_buffer": 20} | changes)


def first(batches, number: int) -> list:
    return list(islice(batches, number))


def through_loader(batches, workers: int, number: int = 7) -> list:
    return first(DataLoader(batches, batch_size=None, num_workers=workers), number)


def sentences_in(lane: list[tuple], marks: tuple = MARKS) -> list[list]:
    """The sentences of pairs (input, target) that follow one another."""
    found, (begin, end) = [], marks
    for given, target in lane:
        if given == begin:
            found.append([])
        else:
            assert given == found[-1][-1]  # what was to be predicted is what comes next
        if target != end:
            found[-1].append(target)
    return found


def pairs_of(batches: list, direction: int = 0) -> list[list[tuple]]:
    """The (input, target) of each row over all batches, gaps left out."""
    rows = [[] for _ in batches[0][0]]
    for batch in batches:
        inputs, targets = batch[2 * direction : 2 * direction + 2]
        for row, ins, outs in zip(rows, inputs, targets, strict=True):
            row += [pair for pair in zip(ins, outs, strict=True) if pair != (None, None)]
    return rows


def test_lanes_by_hand():
    given = Lanes([["a", "b", "c"], [], ["d"]], rows=2, unroll_steps=3, marks=MARKS)
    assert list(given) == [
        ([["<S>", "a", "b"], ["<S>", "<S>", "d"]], [["a", "b", "c"], ["</S>", "d", "</S>"]]),
        ([["c", None, None], [None, None, None]], [["</S>", None, None], [None, None, None]]),
    ]
    given = Lanes([["a", "b", "c"], []], rows=1, unroll_steps=5, marks=MARKS, backward=True)
    assert list(given) == [([["</S>", "c", "b", "a", "</S>"]], [["c", "b", "a", "<S>", "<S>"]])]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("rows", "steps"), [(1, 1), (1, 7), (3, 4), (4, 1), (5, 20), (40, 3)])
def test_lanes_are_those_of_the_slow_twin(rows, steps, backward):
    for sentences in (split(text(30)), split(text(3)), [["a", "b", "c"]], [[]] * 6, []):
        expected = list(lanes(sentences, rows, steps, MARKS, backward))
        assert list(Lanes(sentences, rows, steps, MARKS, backward)) == list(map(halves, expected))
        complete = list(map(halves, without_incomplete(expected)))
        assert list(Lanes(sentences, rows, steps, MARKS, backward, drop_last=True)) == complete


@pytest.mark.parametrize("mode", ["train_char", "train_word", "test_char"])
def test_batches_are_bilms(shared, mode):
    folder = shared / "oracles/elmo/training"
    tokenizer = ElmoTokenizer(folder / "vocab.txt", max_characters_per_token=12)
    one_pass = mode == "test_char"
    given = Stream(
        [TextFile(folder / "corpus.txt", keep_blank=True)],
        split,
        ElmoStreamCollator(tokenizer),
        batch_size=3,
        unroll_steps=4,
        marks=(tokenizer.bos_token, tokenizer.eos_token),
        bidirectional=True,
        shuffle_buffer=0,
        one_pass=one_pass,
        drop_last=one_pass,
    )
    names = {"input_ids": "token_ids", "labels": "next_token_id", "char_ids": "tokens_characters"}
    with np.load(folder / "batches.npz") as oracle:
        number = int(oracle["n_test_batches"]) if one_pass else 12
        batches = first(given, number + one_pass)
        assert len(batches) == number
        compared = 0
        for step, batch in enumerate(batches):
            for ours, theirs in names.items():
                for prefix, suffix in (("", ""), ("backward_", "_reverse")):
                    key = f"{mode}/{step}/{theirs}{suffix}"
                    if key in oracle:
                        compared += 1
                        np.testing.assert_array_equal(batch[prefix + ours].numpy() - 1, oracle[key], key)
        assert compared == number * (4 if mode == "train_word" else 6)


def passes(source: Sentences, size: int, number: int) -> list[list]:
    """The sentences of the first passes over a text with `size` lines."""
    found = first(source, size * number)
    return [[tuple(words) for words in found[start : start + size]] for start in range(0, len(found), size)]


@pytest.mark.parametrize("shuffle_buffer", [1, 4, 1000])
def test_every_pass_has_each_sentence_once_in_another_order(shuffle_buffer):
    shards = [text(11, "a"), text(7, "b"), text(5, "c")]
    expected = Counter(map(tuple, split(chain.from_iterable(shards))))
    orders = []
    for direction in ("forward", "backward"):
        orders += passes(Sentences(shards, split, 3, direction, shuffle_buffer), 23, 4)
    assert all(Counter(order) == expected for order in orders)
    if shuffle_buffer > 1:
        assert len({tuple(order) for order in orders}) == len(orders)
    shard_orders = {tuple(dict.fromkeys(words[0][0] for words in order if words)) for order in orders}
    assert len(shard_orders) > 2  # of 6


def test_equal_seeds_give_equal_orders_and_others_others():
    shards = [text(30)]
    first_pass = passes(Sentences(shards, split, 3, "forward", 1000), 30, 1)
    assert passes(Sentences(shards, split, 3, "forward", 1000), 30, 1) == first_pass
    assert passes(Sentences(shards, split, 4, "forward", 1000), 30, 1) != first_pass


def test_kinds_of_text_are_mixed():
    """Two files of two kinds: the second half of a pass has both, as a training would forget the first otherwise."""
    shards = [text(100, "a"), text(100, "b")]
    for seed in range(5):
        sentences = Sentences(shards, split, seed, "forward", 150, one_pass=True)
        kinds = "".join(words[0][0] for words in sentences if words)
        assert 20 < kinds[-90:].count("a") < 70


def test_the_buffer_bounds_how_early_a_row_can_come():
    shards = [Shard(map(str, range(2500)))]  # more than are encoded at once
    order = [int(words[0]) for words in Sentences(shards, split, 0, "forward", 2500, one_pass=True)]
    assert sorted(order) == list(range(2500))
    assert abs(np.corrcoef(order, range(2500))[0, 1]) < 0.1
    order = [int(words[0]) for words in Sentences(shards, split, 0, "forward", 100, one_pass=True)]
    ahead = [number - place for place, number in enumerate(order)]
    assert 50 < max(ahead) <= 100
    assert min(ahead) < -100


def test_without_shuffling_the_text_keeps_its_order():
    shards = [text(2100, "a"), text(7, "b")]
    assert list(Sentences(shards, split, one_pass=True)) == split(chain.from_iterable(shards))
    assert passes(Sentences(shards, split), 2107, 2)[0] == passes(Sentences(shards, split), 2107, 2)[1]


def test_directions_are_two_shuffles_of_one_text():
    batches = list(stream(one_pass=True, shuffle_buffer=100))
    forward, backward = (pairs_of(batches, direction) for direction in (0, 1))
    expected = Counter(map(tuple, split(chain.from_iterable(stream().lanes[0].sentences.shards))))
    ahead = [words for lane in forward for words in sentences_in(lane)]
    behind = [words[::-1] for lane in backward for words in sentences_in(lane, MARKS[::-1])]
    assert Counter(map(tuple, ahead)) == Counter(map(tuple, behind)) == expected
    assert ahead != behind
    assert batches[0][0][0][1] != batches[0][2][0][1]


def test_lanes_over_many_batches_are_whole_sentences():
    batches = first(stream(batch_size=3), 200)  # many passes, sentences longer than a batch
    whole = {tuple(words) for words in split(chain.from_iterable(stream().lanes[0].sentences.shards))}
    for lane in pairs_of(batches):
        assert len(lane) == 200 * 5
        found = [tuple(words) for words in sentences_in(lane)]
        assert set(found[:-1]) <= whole
        assert len(found) > 100


def test_rows_are_drawn_when_needed():
    shard = Shard(f"a{line} b c" for line in range(10_000))
    next(iter(stream(shards=[shard], shuffle_buffer=100, bidirectional=False)))
    assert shard.drawn == 1100  # the buffer, and as many as are encoded at once
    shard.drawn = 0
    next(iter(sentence_batches(shards=[shard], shuffle_buffer=100)))
    assert shard.drawn <= 1200
    shard.drawn = 0
    next(iter(stream(shards=[shard], shuffle_buffer=0, bidirectional=False)))
    assert shard.drawn == 1000


@pytest.mark.parametrize("shuffle_buffer", [0, 4])
@pytest.mark.parametrize("world_size", [1, 3])
def test_one_pass_has_each_target_once(shuffle_buffer, world_size):
    ranks = [
        list(stream(one_pass=True, shuffle_buffer=shuffle_buffer, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len(set(map(len, ranks))) == 1  # no process waits for another's batch
    sentences = split(chain.from_iterable(stream().lanes[0].sentences.shards))
    for direction, backward in enumerate((False, True)):
        found = Counter(pair for batches in ranks for lane in pairs_of(batches, direction) for pair in lane)
        assert found == Counter(pair for words in sentences for pair in targets_of(words, MARKS, backward))


def test_directions_of_different_lengths_end_together():
    options = {"one_pass": True, "batch_size": 3, "unroll_steps": 2}
    for seed in range(20):
        each = stream(seed=seed, **options)
        lengths = [len(list(lanes)) for lanes in each.lanes]
        batches = list(each)
        assert len(batches) == max(lengths)
        assert len({len(row) for batch in batches for matrix in batch for row in matrix}) == 1
        dropping = stream(seed=seed, drop_last=True, **options)
        assert len(list(dropping)) == min(len(list(lanes)) for lanes in dropping.lanes)
        assert None not in {word for batch in dropping for m in batch for row in m for word in row}
        if lengths[0] != lengths[1]:
            return
    pytest.fail("no seed gave directions of different lengths")


@pytest.mark.parametrize("make", [stream, sentence_batches])
def test_workers_change_nothing(make):
    expected = first(make(), 7)
    assert len({str(batch) for batch in expected}) == 7
    for workers in (0, 1, 2, 3):
        assert through_loader(make(), workers) == expected


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_workers_lose_nothing_of_one_pass(workers):
    expected = list(stream(one_pass=True))
    assert len(expected) % 2
    assert through_loader(stream(one_pass=True), workers, 1000) == expected


def test_processes_share_the_lanes_of_one():
    expected = first(stream(batch_size=6), 9)
    ranks = [first(stream(batch_size=2, rank=rank, world_size=3), 9) for rank in range(3)]
    joined = [
        [list(chain.from_iterable(parts)) for parts in zip(*batches, strict=True)]
        for batches in zip(*ranks, strict=True)
    ]
    assert joined == expected


def test_processes_share_the_sentences_of_one():
    expected = first(sentence_batches(batch_size=6), 9)
    ranks = [first(sentence_batches(batch_size=2, rank=rank, world_size=3), 9) for rank in range(3)]
    for batch, parts in zip(expected, zip(*ranks, strict=True), strict=True):
        assert [batch[rank::3] for rank in range(3)] == list(parts)


@pytest.mark.parametrize("make", [stream, sentence_batches])
@pytest.mark.parametrize("workers", [0, 2])
def test_start_skips_batches(make, workers):
    expected = first(make(), 60)
    for start in (1, 2, 7, 53):  # the last lies in a later pass
        again = make()
        again.start = start
        assert through_loader(again, workers) == expected[start : start + 7]
    assert first(make(start=3), 2) == expected[3:5]


def test_skipped_batches_are_not_collated():
    collated = []
    next(iter(stream(start=9, collate=lambda *batch: collated.append(batch))))
    assert len(collated) == 1


@pytest.mark.parametrize("make", [stream, sentence_batches])
def test_streams_can_be_pickled_and_read_again(make):
    given = make(collate=ElmoStreamCollator(ElmoTokenizer()) if make is stream else as_words)
    expected, copy = first(given, 3), pickle.loads(pickle.dumps(given))
    for again in (first(given, 3), first(copy, 3)):
        assert str(again) == str(expected)


def test_sentence_batches_have_each_sentence_once_a_pass():
    shards = [text(40, "a"), text(33, "b")]
    expected = Counter(tuple(words) for words in split(chain.from_iterable(shards)) if words)
    number = expected.total()
    for seed in range(3):
        found = Counter()
        for batch in first(sentence_batches(batch_size=1, seed=seed, shuffle_buffer=1), 2 * number):
            found.update(map(tuple, batch))
        assert found == Counter(dict.fromkeys(expected, 2))
    batches = first(sentence_batches(), 200)
    counts = Counter(tuple(words) for batch in batches for words in batch)
    assert {len(batch) for batch in batches} == {3}
    assert set(counts) == set(expected)
    assert max(counts.values()) - min(counts.values()) <= 2  # a pass is never more than a buffer ahead


def test_sentence_batches_are_of_similar_lengths_in_random_order():
    batches = first(
        sentence_batches(shards=[text(3000, longest=40)], batch_size=10, shuffle_buffer=3000), 280
    )
    spans = [max(map(len, batch)) - min(map(len, batch)) for batch in batches]
    assert max(spans) <= 2
    lengths = [len(batch[0]) for batch in batches]
    assert abs(np.corrcoef(lengths, range(280))[0, 1]) < 0.2


def test_long_sentences_are_cut_and_empty_ones_left_out():
    given = sentence_batches(shards=[["a b c d e", "", "f"]], batch_size=1, max_words=2, shuffle_buffer=0)
    assert first(given, 5) == [[["a", "b"]], [["c", "d"]], [["e"]], [["f"]], [["a", "b"]]]


def test_sentence_batches_go_into_the_usual_collator():
    tokenizer = ElmoTokenizer.from_words(["a0.0"])
    batch = next(iter(sentence_batches(collate=LanguageModelingCollator(tokenizer))))
    assert set(batch) == {"input_ids", "char_ids", "attention_mask", "labels"}
    assert len(batch["labels"]) == 3


def test_elmo_collator_spells_words_and_marks_gaps():
    tokenizer = ElmoTokenizer.from_words(["the", "cat"], max_characters_per_token=8)
    matrices = ([["<S>", "the"], ["mat", None]], [["the", "cat"], ["</S>", None]])
    other = ([["</S>", "dog"], [None, None]], [["cat", "<UNK>"], [None, None]])
    batch = ElmoStreamCollator(tokenizer)(*matrices, *other)
    ids = tokenizer.get_vocab()
    assert batch["input_ids"].tolist() == [[ids["<S>"], ids["the"]], [ids["<UNK>"], 0]]
    assert batch["labels"].tolist() == [[ids["the"], ids["cat"]], [ids["</S>"], -100]]
    assert batch["backward_input_ids"].tolist() == [[ids["</S>"], ids["<UNK>"]], [0, 0]]
    assert batch["backward_labels"].tolist() == [[ids["cat"], ids["<UNK>"]], [-100, -100]]
    for prefix, matrix in (("", matrices[0]), ("backward_", other[0])):
        spelled = [
            [[0] * 8 if word is None else tokenizer.char_ids_of([word])[0].tolist() for word in row]
            for row in matrix
        ]
        assert batch[f"{prefix}char_ids"].tolist() == spelled
    assert {values.dtype for values in batch.values()} == {torch.int64}
    assert set(ElmoStreamCollator(tokenizer)(*matrices)) == {"char_ids", "input_ids", "labels"}
    nothing = ElmoStreamCollator(tokenizer)([[None]], [[None]])
    assert nothing["char_ids"].shape == (1, 1, 8)
    assert nothing["labels"].tolist() == [[-100]]


def test_elmo_collator_spells_each_word_once():
    tokenizer = ElmoTokenizer.from_words(["the"])
    spelled = []
    spell = tokenizer.char_ids_of
    tokenizer.char_ids_of = lambda words: spelled.extend(words) or spell(words)
    ElmoStreamCollator(tokenizer)(
        [["the"] * 5, ["a"] * 5], [["a"] * 5] * 2, [["the"] * 5] * 2, [["the"] * 5] * 2
    )
    assert sorted(spelled) == ["a", "the"]


def test_a_tokenizer_without_characters_makes_none():
    tokenizer = ElmoTokenizer.from_words(["the"], model_input_names=["input_ids", "attention_mask"])
    assert set(ElmoStreamCollator(tokenizer)([["the"]], [["a"]])) == {"input_ids", "labels"}


def test_token_collator():
    batch = TokenStreamCollator()([[7, 8], [9, None]], [[8, 9], [7, None]])
    assert batch["input_ids"].tolist() == [[7, 8], [9, 0]]
    assert batch["shift_labels"].tolist() == [[8, 9], [7, -100]]
    assert set(TokenStreamCollator("labels")([[7]], [[7]])) == {"input_ids", "labels"}
    assert TokenStreamCollator(padding=3)([[None]], [[None]])["input_ids"].tolist() == [[3]]


def test_ids_stream_with_one_mark():
    given = stream(
        shards=[["5 6 7", "8"]],
        encode=lambda lines: [[int(word) for word in line.split()] for line in lines],
        collate=TokenStreamCollator(),
        marks=(2, 2),
        batch_size=1,
        bidirectional=False,
        shuffle_buffer=0,
    )
    batches = first(given, 2)
    assert torch.cat([batch["input_ids"] for batch in batches], 1).tolist() == [
        [2, 5, 6, 7, 2, 8, 2, 5, 6, 7]
    ]
    assert torch.cat([batch["shift_labels"] for batch in batches], 1).tolist() == [
        [5, 6, 7, 2, 8, 2, 5, 6, 7, 2]
    ]


@pytest.mark.parametrize("make", [stream, sentence_batches])
@pytest.mark.parametrize("shard", [[], ["", " "]])
def test_a_text_without_words_is_refused(make, shard):
    shard = Shard(shard)
    with pytest.raises(ValueError, match="found no sentence in a shard, a shard; expected lines of text"):
        first(make(shards=[shard, shard], batch_size=50), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shards": []}, "shards is empty; expected one at least"),
        ({"batch_size": 0}, "batch_size is 0; expected an int of at least 1"),
        ({"batch_size": 2.0}, "batch_size is 2.0; expected an int of at least 1"),
        ({"unroll_steps": 0}, "unroll_steps is 0; expected an int of at least 1"),
        ({"shuffle_buffer": -1}, "shuffle_buffer is -1; expected an int of at least 0"),
        ({"start": -1}, "start is -1; expected an int of at least 0"),
        ({"world_size": 0}, "world_size is 0; expected an int of at least 1"),
        ({"rank": 2, "world_size": 2}, "rank is 2; expected 0 to 1, as world_size is 2"),
    ],
)
def test_numbers_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        stream(**changes)


def test_pieces_of_no_word_are_refused():
    with pytest.raises(ValueError, match="max_words is 0; expected an int of at least 1"):
        sentence_batches(max_words=0)
