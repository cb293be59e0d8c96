"""InputTemplate: the four layouts, what is cut and what never is, marks as new tokens, and the original's own code."""

import logging

import pytest
import torch
from stock_lms import gpt2, roberta, tokenizer
from transformers import AutoTokenizer

from heirloom.modeling.modeling_joint_loss import JointLossForSequenceClassification
from heirloom.objectives.input_forms import FORMS, TRUNCATIONS, InputTemplate

WORDS = 40
START, DELIMITER, CLASSIFY = 40, 41, 42


def ready(**options):
    template, words = InputTemplate(**options), tokenizer(WORDS)
    template.prepare(words)
    return template, words


def text(first, count):
    return " ".join(f"w{number}" for number in range(first, first + count))


def ids(first, count):
    return list(range(first, first + count))


def transform_roc(X1, X2, X3, n_ctx):
    """Transcribed from finetune-transformer-lm's train.py; start, delimiter and classify are the ids after all words."""
    max_len = n_ctx // 2 - 2
    rows = []
    for x1, x2, x3 in zip(X1, X2, X3, strict=True):
        x12 = [START, *x1[:max_len], DELIMITER, *x2[:max_len], CLASSIFY]
        x13 = [START, *x1[:max_len], DELIMITER, *x3[:max_len], CLASSIFY]
        rows.append([x12, x13])
    return rows


def test_layouts():
    template, words = ready()
    a, b, c = text(5, 3), text(10, 2), text(20, 1)
    assert template.classification(words, a) == [START, 5, 6, 7, CLASSIFY]
    assert template.entailment(words, a, b) == [START, 5, 6, 7, DELIMITER, 10, 11, CLASSIFY]
    assert template.similarity(words, a, b) == [
        [START, 5, 6, 7, DELIMITER, 10, 11, CLASSIFY],
        [START, 10, 11, DELIMITER, 5, 6, 7, CLASSIFY],
    ]
    assert template.multiple_choice(words, a, [b, c]) == [
        [START, 5, 6, 7, DELIMITER, 10, 11, CLASSIFY],
        [START, 5, 6, 7, DELIMITER, 20, CLASSIFY],
    ]
    # [z; q; $; a_k]: no delimiter between context and question
    assert template.multiple_choice(words, a, [b, c], question="w30 w31")[1] == [
        *(START, 5, 6, 7, 30, 31, DELIMITER, 20, CLASSIFY)
    ]


def test_rows_are_the_layouts():
    template, words = ready()
    example = {"text": "w5", "premise": "w6", "hypothesis": "w7", "first": "w8", "second": "w9"}
    example |= {"context": "w10", "choices": ["w11", "w12", "w13"], "question": None}
    assert template.rows(words, "classification", example) == [[START, 5, CLASSIFY]]
    assert template.rows(words, "entailment", example) == [[START, 6, DELIMITER, 7, CLASSIFY]]
    assert [row[1] for row in template.rows(words, "similarity", example)] == [8, 9]
    assert [row[3] for row in template.rows(words, "multiple_choice", example)] == [11, 12, 13]
    assert template.rows(words, "multiple_choice", example | {"question": "w20"})[2] == [
        *(START, 10, 20, DELIMITER, 13, CLASSIFY)
    ]
    assert set(FORMS) == {"classification", "entailment", "similarity", "multiple_choice"}


@pytest.mark.parametrize("n_ctx", [8, 9, 16, 512])
def test_halves_is_the_original(n_ctx):
    template, words = ready(max_length=n_ctx, truncation="halves")
    stories = [
        (ids(3, first), ids(3, second), ids(10, third)) for first, second, third in [(20, 2, 30), (1, 9, 4)]
    ]
    expected = transform_roc(*zip(*stories, strict=True), n_ctx)
    for (story, *endings), rows in zip(stories, expected, strict=True):
        spelt = [" ".join(f"w{token}" for token in part) for part in (story, *endings)]
        assert template.multiple_choice(words, spelt[0], spelt[1:]) == rows
        assert template.multiple_choice(words, story, endings) == rows


def slow_longest_first(first, second, room):
    """One token at a time from the longer text, from the second one where they are as long."""
    first, second = list(first), list(second)
    while len(first) + len(second) > room:
        (first if len(first) > len(second) else second).pop()
    return first, second


@pytest.mark.parametrize(
    "lengths", [(1, 1), (4, 4), (5, 4), (2, 12), (12, 2), (12, 12), (0, 15), (15, 1), (6, 7)]
)
@pytest.mark.parametrize("max_length", [5, 8, 9, 12])
def test_longest_first_cuts_as_one_by_one(lengths, max_length):
    template, words = ready(max_length=max_length)
    one, other = ids(3, lengths[0]), ids(20, lengths[1])
    kept_one, kept_other = slow_longest_first(one, other, max_length - 3)
    row = template.entailment(words, one, other)
    assert row == [START, *kept_one, DELIMITER, *kept_other, CLASSIFY]
    assert len(row) == min(max_length, sum(lengths) + 3)
    both = template.similarity(words, one, other)
    assert both[0] == row
    assert both[1] == [START, *kept_other, DELIMITER, *kept_one, CLASSIFY]  # cut alike


def test_context_alone_is_cut():
    template, words = ready(max_length=10, truncation="context")
    assert template.entailment(words, ids(3, 30), ids(34, 5)) == [
        *(START, 3, 4, DELIMITER, 34, 35, 36, 37, 38, CLASSIFY)
    ]
    rows = template.multiple_choice(words, ids(3, 30), [ids(34, 1), ids(35, 3)], question=[33])
    assert rows == [
        [START, 3, 4, 5, 33, DELIMITER, 34, CLASSIFY],  # the same context for each choice
        [START, 3, 4, 5, 33, DELIMITER, 35, 36, 37, CLASSIFY],
    ]
    assert template.classification(words, ids(3, 30)) == [START, *ids(3, 8), CLASSIFY]
    with pytest.raises(ValueError, match=r'no place for the premise.*30 tokens.*truncation="longest_first"'):
        template.entailment(words, [3], ids(3, 30))
    with pytest.raises(ValueError, match=r"max_length=10 leaves no place for the context.*question 7"):
        template.multiple_choice(words, [3], [[4], [5]], question=ids(3, 7))


def test_the_tokenizer_says_which_end_stays():
    template, words = ready(max_length=8)
    words.truncation_side = "left"
    assert template.classification(words, ids(3, 30)) == [START, *ids(27, 6), CLASSIFY]
    assert template.entailment(words, ids(3, 30), [35]) == [START, 29, 30, 31, 32, DELIMITER, 35, CLASSIFY]
    assert template.entailment(words, [3], []) == [START, 3, DELIMITER, CLASSIFY]


@pytest.mark.parametrize("truncation", TRUNCATIONS)
@pytest.mark.parametrize("max_length", [8, 9, 15])
def test_marks_are_never_cut(truncation, max_length):
    template, words = ready(max_length=max_length, truncation=truncation)
    for first in (0, 1, 5, 30):
        for second in (1, 2, 4):
            for row in template.similarity(words, ids(3, first), ids(3, second)):
                assert len(row) <= max_length
                assert (row[0], row[-1]) == (START, CLASSIFY)
                assert [row.count(mark) for mark in (START, DELIMITER, CLASSIFY)] == [1, 1, 1]


def test_prepare_adds_three_tokens_and_resizes_once():
    words = tokenizer(WORDS)
    template = InputTemplate(max_length=64)
    model = JointLossForSequenceClassification.from_backbone_pretrained(gpt2(WORDS))
    before = model.get_input_embeddings().weight.clone()
    assert template.prepare(words, model) == 3
    assert template.ids(words) == (40, 41, 42)
    assert template.prepare(words, model) == 0
    after = model.get_input_embeddings().weight
    assert after.shape == (43, 24)
    assert torch.equal(after[:40], before)
    assert 0.005 < after[40:].std() < 0.05  # small numbers and not the mean of all words
    assert model.language_model.lm_head.weight is after
    assert model.config.text_config.vocab_size == 43
    # nothing shrinks
    model.resize_token_embeddings(64)
    template.prepare(words, model)
    assert model.get_input_embeddings().weight.shape[0] == 64


def test_prepare_says_to_resize(caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    from heirloom.objectives import input_forms

    input_forms.logger.addHandler(caplog.handler)
    try:
        template, words = ready()
        assert "a model needs 43 embeddings" in caplog.text
        assert "template.prepare(tokenizer, model)" in caplog.text
        caplog.clear()
        template.prepare(words)
        assert not caplog.text
    finally:
        logger.removeHandler(caplog.handler)
        input_forms.logger.removeHandler(caplog.handler)


def test_own_tokens_may_be_marks():
    words = tokenizer(WORDS)
    template = InputTemplate(start="[BOS]", delimiter="[EOS]")
    assert template.prepare(words) == 1
    assert template.entailment(words, "w5", "w6") == [1, 5, 2, 6, 40]


def test_marks_survive_saving_and_decode(tmp_path):
    template, words = ready()
    words.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    row = template.entailment(again, "w5", "w6")
    assert row == template.entailment(words, "w5", "w6") == [START, 5, DELIMITER, 6, CLASSIFY]
    assert again.decode(row, skip_special_tokens=True).split() == ["w5", "w6"]


def test_a_spelt_out_mark_is_text():
    template, words = ready()
    assert CLASSIFY in words("w5 _classify_ w6", add_special_tokens=False)["input_ids"]
    row = template.classification(words, "w5 _classify_ w6")
    assert row.count(CLASSIFY) == 1
    assert row[-1] == CLASSIFY
    with pytest.raises(ValueError, match=r"premise holds the marks \['_classify_'\] themselves.*other marks"):
        template.entailment(words, [5, CLASSIFY], "w6")


def test_the_head_reads_the_mark():
    """With `model_options` the vector of `classify`, which for a causal model is also the last one."""
    template, words = ready(max_length=64)
    model = JointLossForSequenceClassification.from_backbone_pretrained(
        gpt2(WORDS), **template.model_options(words)
    )
    template.prepare(words, model)
    row = torch.tensor([template.classification(words, "w5 w6 w7")])
    logits = model(input_ids=row).logits
    hidden = model.language_model.transformer(row).last_hidden_state[:, -1]
    torch.testing.assert_close(logits, model.classifier(hidden))


def test_bad_templates():
    with pytest.raises(ValueError, match="three different tokens.*_start_"):
        InputTemplate(classify="_start_")
    with pytest.raises(ValueError, match=r"truncation must be one of .*longest_first.*found 'middle'"):
        InputTemplate(truncation="middle")
    with pytest.raises(ValueError, match="max_length must be at least 5.*found 4"):
        InputTemplate(max_length=4)
    with pytest.raises(ValueError, match="at least 6"):
        InputTemplate(max_length=5, truncation="halves")


def test_bad_models():
    words = tokenizer(WORDS)
    template = InputTemplate(max_length=65)
    with pytest.raises(
        ValueError, match=r"64 positions, found max_length=65. Use InputTemplate\(max_length=64\)"
    ):
        template.prepare(words, gpt2(WORDS))
    with pytest.raises(ValueError, match=r"63 positions"):
        template.prepare(tokenizer(WORDS), roberta())
    template = InputTemplate(max_length=64)
    model = JointLossForSequenceClassification.from_backbone_pretrained(
        gpt2(WORDS), pooling="classify_token", classify_token_id=7
    )
    with pytest.raises(ValueError, match=r"reads the vector of token 7, but _classify_ is token 42"):
        template.prepare(words, model)


def test_bad_texts():
    template, words = ready()
    with pytest.raises(
        ValueError, match=r"does not know _start_, _delimiter_, _classify_. Call template.prepare"
    ):
        template.classification(tokenizer(WORDS), "w5")
    with pytest.raises(ValueError, match="text must be a text or a list of token ids, found 3.5"):
        template.classification(words, 3.5)
    with pytest.raises(ValueError, match=r"hypothesis must be .* found \['w5'\]"):
        template.entailment(words, "w5", ["w5"])
    with pytest.raises(ValueError, match="choices must be a list of at least two texts, found 'w5'"):
        template.multiple_choice(words, "w5", "w5")
    with pytest.raises(ValueError, match="at least two texts"):
        template.multiple_choice(words, "w5", ["w5"])
    with pytest.raises(ValueError, match="form must be one of .*found 'pairs'"):
        template.rows(words, "pairs", {})
    with pytest.raises(
        ValueError, match="reads the columns premise, hypothesis, found nothing in hypothesis"
    ):
        template.rows(words, "entailment", {"premise": "w5", "hypothesis": None})
