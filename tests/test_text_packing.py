"""Packing, and labels of tokens that need the document: nothing lost, nothing cut that fits, equality with slow twins."""

from itertools import chain

import numpy as np
import pytest
from datasets import Dataset
from reference import pairs_naive as naive
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from heirloom.objectives.documents import Documents
from heirloom.objectives.text_packing import (
    DataCollatorForCausalLanguageModeling,
    TextBlocks,
    pack_contiguous,
    pack_doc_sentences,
    pack_full_sentences,
)
from heirloom.objectives.token_batch import Vocabulary
from heirloom.objectives.token_labels import add_capitalization, repeated_in_document, token_document_blocks

END = 99


def lists(sizes, mean=36, seed=0, vocabulary=90) -> list[list[list[int]]]:
    rng = np.random.default_rng(seed)
    return [
        [rng.integers(5, vocabulary, length).tolist() for length in rng.poisson(mean, size) + 1]
        for size in sizes
    ]


DOCUMENTS = lists(np.random.default_rng(1).integers(1, 12, 120))


def joined(rows) -> list[int]:
    return list(chain.from_iterable(rows))


FLAT = [token for document in DOCUMENTS for sentence in document for token in sentence]
ENDED = [token for document in DOCUMENTS for token in [*chain(*document), END]]


def rows_of(blocks) -> list[list[int]]:
    return [blocks[index]["input_ids"].tolist() for index in range(len(blocks))]


def test_contiguous_blocks_are_the_corpus():
    rows = rows_of(pack_contiguous(DOCUMENTS, 128, END))
    assert {len(row) for row in rows} == {128}
    assert joined(rows) == ENDED[: len(ENDED) // 128 * 128]
    assert joined(rows_of(pack_contiguous(DOCUMENTS, 128, END, drop_last=False))) == ENDED
    assert joined(rows_of(pack_contiguous(DOCUMENTS, 128, drop_last=False))) == FLAT
    exact = pack_contiguous([[[7] * 64], [[8] * 64]], 64, drop_last=False)
    assert len(exact) == 2
    assert exact.fill(64) == 1


def test_blocks_with_nothing_to_hide_are_left_out():
    # The separators have no room behind ten tokens.
    blocks = pack_full_sentences([[[7] * 10], [[8] * 10], [[9] * 10]], 12, 5, 1, 2)
    kept = blocks.with_text(Vocabulary(100, special_ids=(1, 2, 5)))
    assert rows_of(blocks)[1::2] == [[1, 5, 2]] * 3
    assert rows_of(kept) == [[1, *[token] * 10, 2] for token in (7, 8, 9)]
    assert kept[-1]["input_ids"].tolist() == [1, *[9] * 10, 2]
    assert kept.fill(12) == 1
    with pytest.raises(IndexError, match="a block of 0 to 2, got 3"):
        kept[3]
    words = TextBlocks(blocks.columns | {"word_ids": np.full(33, -1)}, blocks.edges)
    words.columns["word_ids"][11:20] = 3
    assert rows_of(words.with_text(Vocabulary(100, special_ids=(5,)))) == [[8] * 10]
    with pytest.raises(ValueError, match="special tokens alone, or no words"):
        pack_doc_sentences([[[5, 5]]], 8).with_text(Vocabulary(100, special_ids=(5,)))
    rest = TextBlocks({"input_ids": np.array([7, 5, 8])}, np.array([0, 1, 2]))  # the 8 fills no block
    assert rows_of(rest.with_text(Vocabulary(100, special_ids=(5,)))) == [[7]]


def test_full_sentences():
    blocks = pack_full_sentences(DOCUMENTS, 512)
    rows = rows_of(blocks)
    assert rows == naive.full_sentences([sentence for document in DOCUMENTS for sentence in document], 512)
    assert 0.93 <= blocks.fill(512) <= 1
    ended = [[*document[:-1], [*document[-1], END]] for document in DOCUMENTS]
    with_ends = pack_full_sentences(DOCUMENTS, 130, separator=END, before=1, after=2)
    assert rows_of(with_ends) == [
        [1, *row, 2]
        for row in naive.full_sentences([sentence for document in ended for sentence in document], 128)
    ]


def test_doc_sentences():
    rows = rows_of(pack_doc_sentences(DOCUMENTS, 128))
    assert rows == [row for document in DOCUMENTS for row in naive.full_sentences(document, 128)]


def test_only_sentences_that_are_too_long_are_cut():
    long = [[[5] * 3, [6] * 25, [7] * 4], [[8] * 10], [[9] * 11]]
    assert [len(row) for row in rows_of(pack_full_sentences(long, 10))] == [3, 10, 10, 9, 10, 10, 1]
    assert [len(row) for row in rows_of(pack_doc_sentences(long, 10))] == [3, 10, 10, 9, 10, 10, 1]
    for pack in (pack_full_sentences, pack_doc_sentences):
        assert joined(rows_of(pack(DOCUMENTS, 20))) == FLAT


def test_words_are_cut_with_their_tokens():
    rows = [[{"input_ids": [7, 8, 9], "word_ids": [0, 0, 1]}], [{"input_ids": [7], "word_ids": [0]}]]
    row = pack_full_sentences(Documents.of(rows), 8, separator=END, before=1)[0]
    assert row["input_ids"].tolist() == [1, 7, 8, 9, END, 7, END]
    assert row["word_ids"].tolist() == [-1, 0, 0, 1, -1, 2, -1]


def test_rows_are_copies():
    blocks = pack_contiguous(DOCUMENTS, 16)
    before = blocks[0]["input_ids"].copy()
    blocks[0]["input_ids"][:] = 0
    assert np.array_equal(blocks[0]["input_ids"], before)
    assert np.array_equal(blocks[-1]["input_ids"], blocks[len(blocks) - 1]["input_ids"])
    with pytest.raises(IndexError, match="expected a block of 0 to"):
        blocks[len(blocks)]


WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "harbin", "ice", "##d", "of", ".", "big"]


def tokenizer_of(**roles) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(name, WORDS.index(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **roles)


def test_the_end_of_a_text_is_a_target_even_if_it_is_the_padding():
    collate = DataCollatorForCausalLanguageModeling(tokenizer_of(eos_token="[SEP]", pad_token="[SEP]"))
    batch = collate([{"input_ids": np.array([4, 5, 3])}, {"input_ids": [4, 3, 4, 5, 3]}])
    assert batch["labels"].tolist() == [[4, 5, 3, -100, -100], [4, 3, 4, 5, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["input_ids"].tolist()[0] == [4, 5, 3, 3, 3]
    model = GPT2LMHeadModel(GPT2Config(vocab_size=12, n_embd=4, n_layer=1, n_head=1, n_positions=8)).eval()
    loss = model(**batch).loss
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.log_softmax(-1)
    by_hand = [logits[r, t - 1, batch["input_ids"][r, t]] for r, n in enumerate((3, 5)) for t in range(1, n)]
    assert float(loss.detach()) == pytest.approx(-sum(one.item() for one in by_hand) / 6, abs=1e-6)


def test_capitals_come_from_the_text_as_it_is_written():
    tokenizer = tokenizer_of(cls_token="[CLS]", sep_token="[SEP]")
    texts = ["The Iced ice of Harbin.", ""]
    rows = add_capitalization(Dataset.from_dict({"text": texts}), tokenizer)
    assert tokenizer.convert_ids_to_tokens(rows[0]["input_ids"])[1:4] == ["the", "ice", "##d"]
    assert rows[0]["labels"] == [-100, 1, 1, 1, 0, 0, 1, 0, -100]
    assert rows[1]["labels"] == [-100, -100]
    short = add_capitalization(Dataset.from_dict({"text": texts}), tokenizer, max_length=4)
    assert short[0]["labels"] == [-100, 1, 1, -100]
    with pytest.raises(ValueError, match=r"expected a column 'text' in the data set, got \['a'\]"):
        add_capitalization(Dataset.from_dict({"a": texts}), tokenizer)


def test_tokens_that_appear_again_in_their_document():
    documents = lists([3, 1, 5, 2], mean=6, vocabulary=25)
    corpus = Documents.of(documents)
    found = repeated_in_document(corpus, corpus.sentences)
    expected = [label for document in documents for segment in naive.repeated(document) for label in segment]
    assert found.tolist() == expected
    assert 0 < found.mean() < 1
    blocks = token_document_blocks(corpus, tokenizer_of(cls_token="[CLS]", sep_token="[SEP]"), max_length=16)
    row = blocks[0]
    assert row["input_ids"][[0, -1]].tolist() == [2, 3]
    assert row["labels"][[0, -1]].tolist() == [-100, -100]
    per_document = [naive.repeated(naive.full_sentences(document, 14)) for document in documents]
    assert [blocks[i]["labels"][1:-1].tolist() for i in range(len(blocks))] == joined(per_document)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="one row of 5000 tokens, got 3: use drop_last=False"):
        pack_contiguous([[[7, 8, 9]]], 5000)
    with pytest.raises(ValueError, match="max_length is 0; expected 1 or more"):
        pack_contiguous(DOCUMENTS, 0)
    with pytest.raises(ValueError, match="expected more than the 2 special tokens"):
        pack_doc_sentences(DOCUMENTS, 2, before=1, after=2)
