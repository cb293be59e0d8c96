"""JointLossCollator: every number of a batch by hand, exact counts of targets, and the four forms trained to the end."""

import pytest
import torch
from stock_lms import bert, gpt2, tokenizer
from tokenizers import processors
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from heirloom.modeling.modeling_joint_loss import (
    JointLossForMultipleChoice,
    JointLossForSequenceClassification,
    JointLossForSimilarity,
)
from heirloom.objectives.input_forms import InputTemplate
from heirloom.objectives.joint_collators import JointLossCollator, ReplaySentences, TokenHider
from heirloom.training.joint_trainer import JointLossTrainer

WORDS = 40
S, D, C = 40, 41, 42
MASK = 3
FORMS = {
    "classification": JointLossForSequenceClassification,
    "entailment": JointLossForSequenceClassification,
    "similarity": JointLossForSimilarity,
    "multiple_choice": JointLossForMultipleChoice,
}
CHOICES = [
    {"context": "w5 w6", "choices": ["w7", "w8 w9 w10"], "label": 1},
    {"context": "w11", "choices": ["w12 w13", "w14"], "label": 0},
    {"context": "w15", "choices": ["w16", "w17"], "label": None},
]


def masked_words():
    words = tokenizer(
        WORDS,
        ("[PAD]", "[BOS]", "[EOS]", "[MASK]"),
        pad_token="[PAD]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        mask_token="[MASK]",
    )
    pair = {"single": "[BOS] $A [EOS]", "special_tokens": [("[BOS]", 1), ("[EOS]", 2)]}
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(**pair)
    return words


def make(form, words=None, max_length=64, **options):
    words = words or tokenizer(WORDS)
    template = InputTemplate(max_length=max_length)
    template.prepare(words)
    return JointLossCollator(words, template, form, **options)


def model_for(form, words, masked=False, **options):
    backbone = (bert if masked else gpt2)(WORDS)
    template = InputTemplate(max_length=64)
    template.prepare(words)
    model = FORMS[form].from_backbone_pretrained(backbone, **template.model_options(words), **options)
    template.prepare(words, model)
    return model


def equal(batch, **expected):
    for name, rows in expected.items():
        assert batch[name].tolist() == rows, name


# Causal


def test_classification():
    batch = make("classification")([{"text": "w5 w6", "label": 1}, {"text": "w7", "label": 0}])
    equal(
        batch,
        input_ids=[[S, 5, 6, C], [S, 7, C, 0]],
        attention_mask=[[1, 1, 1, 1], [1, 1, 1, 0]],
        lm_targets=[[-100, 5, 6, C], [-100, 7, C, -100]],  # never _start_ and padding; _classify_ is a target
        labels=[1, 0],
    )
    assert set(batch) == {"input_ids", "attention_mask", "lm_targets", "labels"}
    assert batch["labels"].dtype == torch.long


def test_entailment():
    batch = make("entailment")([{"premise": "w5", "hypothesis": "w6", "labels": 2}])
    equal(batch, input_ids=[[S, 5, D, 6, C]], lm_targets=[[-100, 5, D, 6, C]], labels=[2])


def test_similarity():
    rows = [{"first": "w5", "second": "w6 w7", "label": 3}, {"first": "w8", "second": "w9", "label": 4.5}]
    batch = make("similarity", problem_type="regression")(rows)
    equal(
        batch,
        input_ids=[
            [[S, 5, D, 6, 7, C], [S, 6, 7, D, 5, C]],
            [[S, 8, D, 9, C, 0], [S, 9, D, 8, C, 0]],
        ],
        labels=[3.0, 4.5],
    )
    assert batch["lm_targets"].shape == batch["attention_mask"].shape == (2, 2, 6)
    # whole numbers too are scores, in whatever batch they come
    assert make("similarity", problem_type="regression")(rows[:1])["labels"].dtype == torch.float


def test_choices():
    batch = make("multiple_choice")(CHOICES)
    assert batch["input_ids"].shape == (3, 2, 8)
    equal(batch, labels=[1, 0, -100])
    assert batch["input_ids"][0].tolist() == [[S, 5, 6, D, 7, C, 0, 0], [S, 5, 6, D, 8, 9, 10, C]]
    assert batch["lm_targets"][0].tolist() == [
        [-100, 5, 6, D, 7, C, -100, -100],
        [-100, 5, 6, D, 8, 9, 10, C],
    ]
    # as many targets as tokens but _start_
    assert int((batch["lm_targets"] != -100).sum()) == int(batch["attention_mask"].sum()) - 6


def test_gold_trains_on_the_right_choice_only():
    batch = make("multiple_choice", lm_on="gold")(CHOICES)
    everything = make("multiple_choice")(CHOICES)["lm_targets"]
    rows = (batch["lm_targets"] != -100).any(2)
    assert rows.tolist() == [[False, True], [True, False], [False, False]]  # and none where it is unknown
    assert torch.equal(batch["lm_targets"][rows], everything[rows])
    model = model_for("multiple_choice", tokenizer(WORDS), lm_loss_reduction="example")
    assert int(model.count_lm_items(batch)) == 2
    assert int(model.count_lm_items(make("multiple_choice")(CHOICES))) == 6
    model.config.lm_loss_reduction = "token"
    assert int(model.count_lm_items(batch)) == 7 + 5
    # without any label no ending is known
    bare = [{name: row[name] for name in ("context", "choices")} for row in CHOICES]
    batch = make("multiple_choice", lm_on="gold")(bare)
    assert "labels" not in batch
    assert bool((batch["lm_targets"] == -100).all())


def test_the_models_own_targets_are_the_same():
    """Given or left out, a causal model predicts the same tokens."""
    words = tokenizer(WORDS)
    for form, rows in (("multiple_choice", CHOICES), ("classification", [{"text": "w5 w6", "label": 0}])):
        batch = make(form, words)(rows)
        model = model_for(form, words)
        given = model.lm_targets_of(batch)
        assert torch.equal(given, model.lm_targets_of(batch | {"lm_targets": None}))


def test_padding_is_no_target_even_where_it_is_a_word():
    words = tokenizer(WORDS, pad_token="w7", unk_token="w39")
    batch = make("classification", words)([{"text": "w7 w7 w5"}, {"text": "w7"}])
    equal(
        batch,
        input_ids=[[S, 7, 7, 5, C], [S, 7, C, 7, 7]],
        lm_targets=[[-100, 7, 7, 5, C], [-100, 7, C, -100, -100]],
    )
    words = tokenizer(WORDS, unk_token="w39")  # none at all: id 0, as in the original
    assert words.pad_token_id is None
    assert make("classification", words)([{"text": "w7 w7"}, {"text": ""}])["input_ids"][1].tolist() == [
        S,
        C,
        0,
        0,
    ]


def test_labels():
    collate = make("classification")
    text = {"text": "w5"}
    equal(collate([{**text, "label": None}, {**text, "label": 1}, text]), labels=[-100, 1, -100])
    equal(collate([{**text, "label": None}]), labels=[-100])
    assert "labels" not in collate([text])
    equal(
        collate([{**text, "labels": [0, 1]}, {**text, "labels": None}]), labels=[[0.0, 1.0], [-100.0, -100.0]]
    )
    assert collate([{**text, "label": 0.5}])["labels"].dtype == torch.float
    with pytest.raises(ValueError, match=r"labels must be numbers.*found \['yes'\].*Map names"):
        collate([{**text, "label": "yes"}])
    with pytest.raises(ValueError, match="lists of as many numbers"):
        collate([{**text, "label": [1, 0]}, {**text, "label": [1]}])


def test_columns_may_have_other_names():
    collate = make("multiple_choice", columns={"context": "premise", "question": "ask", "choices": "answers"})
    batch = collate([{"premise": "w5", "ask": "w6", "answers": ["w7", "w8"], "label": 0}])
    assert batch["input_ids"][0, 0].tolist() == [S, 5, 6, D, 7, C]


def test_lambda_0_needs_no_targets():
    batch = make("classification", lm_objective=None)([{"text": "w5", "label": 1}])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}


# Masked


def test_a_masked_model_gets_a_second_stream():
    words = masked_words()
    rows = [{"text": " ".join(f"w{n}" for n in range(5, 25)), "label": 1}, {"text": "w7", "label": 0}]
    batch = make("classification", words, lm_objective="masked")(rows)
    clean, hidden, targets = batch["input_ids"], batch["lm_input_ids"], batch["lm_targets"]
    assert clean[1, :3].tolist() == [S, 7, C]
    assert torch.equal(batch["lm_attention_mask"], batch["attention_mask"])
    chosen = targets != -100
    assert chosen.sum(1).tolist() == [3, 1]  # 15 % of 20, and never none
    assert torch.equal(targets[chosen], clean[chosen])
    assert torch.equal(hidden[~chosen], clean[~chosen])
    assert not torch.isin(targets[chosen], torch.tensor([S, D, C, 0, 1, 2, MASK])).any()


@pytest.mark.parametrize(
    ("count", "rate", "expected"), [(1, 0.15, 1), (20, 0.15, 3), (30, 0.5, 15), (0, 0.15, 0), (7, 1.0, 7)]
)
def test_how_many_are_hidden(count, rate, expected):
    words = masked_words()
    ids = torch.tensor([[1, *range(5, 5 + count), 2, 0, 0]] * 50)
    mask = (ids != 0).long()
    _, targets = TokenHider(words, rate=rate)(ids, mask)
    assert (targets != -100).sum(1).unique().tolist() == [expected]


def test_80_10_10():
    words = masked_words()
    ids = torch.randint(5, 30, (400, 100))
    hidden, targets = TokenHider(words, generator=torch.Generator().manual_seed(1))(ids, torch.ones_like(ids))
    chosen = targets != -100
    assert int(chosen.sum()) == 400 * 15
    assert chosen.float().mean(0).std() < 0.03  # no place is liked better
    masked = (hidden == MASK) & chosen
    other = chosen & ~masked & (hidden != ids)
    assert masked.sum() / 6000 == pytest.approx(0.8, abs=0.02)
    # a random word of 36 may be the very one
    assert other.sum() / 6000 == pytest.approx(0.1 * 35 / 36, abs=0.015)
    drawn = hidden[other].unique().tolist()
    assert drawn == [*range(4, WORDS)]  # every word, and no special token


def test_a_generator_makes_it_repeatable():
    words, rows = masked_words(), [{"text": " ".join(f"w{n}" for n in range(5, 35))}]

    def hidden(seed):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        collate = make("classification", words, lm_objective="masked", generator=generator)
        return [collate(rows)["lm_input_ids"].tolist() for _ in range(3)]

    first = hidden(4)
    torch.manual_seed(99)  # nothing else counts
    assert hidden(4) == first
    assert hidden(5) != first
    assert first[0] != first[1]  # and every call hides others
    torch.manual_seed(7)
    own = hidden(None)
    assert hidden(None) != own
    torch.manual_seed(7)
    assert hidden(None) == own


def test_workers_hide_different_places():
    words = masked_words()
    rows = [{"text": " ".join(f"w{n}" for n in range(5, 35))}] * 4
    collate = make("classification", words, lm_objective="masked", generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    found = [
        batch["lm_input_ids"].tolist() for batch in DataLoader(rows, 2, num_workers=2, collate_fn=collate)
    ]
    assert found[0] != found[1]


def test_masked_gold_reads_the_right_choices_only():
    words = masked_words()
    batch = make("multiple_choice", words, lm_objective="masked", lm_on="gold")(CHOICES)
    assert batch["lm_input_ids"].shape == (3, 8)
    gold = batch["input_ids"][torch.arange(3), torch.tensor([1, 0, 0])]
    chosen = batch["lm_targets"] != -100
    assert chosen.sum(1).tolist() == [1, 1, 0]
    assert torch.equal(batch["lm_input_ids"][:2][~chosen[:2]], gold[:2][~chosen[:2]])
    assert torch.equal(batch["lm_targets"][chosen], gold[chosen])
    both = make("multiple_choice", words, lm_objective="masked")(CHOICES)
    assert both["lm_input_ids"].shape == (6, 8)
    model = model_for("multiple_choice", words, masked=True)
    assert int(model.count_lm_items(batch)) == 2
    assert int(model.count_lm_items(both)) == 6
    assert torch.isfinite(model.train()(**both).loss)


# Replay


def test_replay_goes_through_everything_in_turn():
    sentences = [f"w{n}" for n in range(5, 12)]
    sampler = ReplaySentences(sentences, seed=1)
    drawn = sampler.draw(3) + sampler.draw(11)
    assert sorted(drawn[:7]) == sorted(drawn[7:]) == sorted(sentences)
    assert drawn[:7] != drawn[7:]
    assert ReplaySentences(sentences, seed=1).draw(14) == drawn
    assert ReplaySentences(sentences, seed=2).draw(14) != drawn
    with pytest.raises(ValueError, match="at least one sentence"):
        ReplaySentences([])


def test_causal_replay():
    replay = ReplaySentences(["w20 w21 w22 w23 w24 w25 _classify_"] * 3)
    batch = make("multiple_choice", max_length=6, replay=replay)(
        [{"context": "w5", "choices": ["w7", "w8"], "label": 1}] * 2
    )
    assert batch["input_ids"].shape == (2, 2, 5)
    equal(
        batch,
        lm_input_ids=[[20, 21, 22, 23, 24, 25]] * 2,  # one an example, no marks
        lm_attention_mask=[[1] * 6] * 2,
        lm_targets=[[-100, 21, 22, 23, 24, 25]] * 2,
    )
    model = model_for("multiple_choice", tokenizer(WORDS), lm_loss_reduction="token")
    assert int(model.count_lm_items(batch)) == 10
    found = model.train()(**batch)
    logits = model.language_model.eval()(batch["lm_input_ids"]).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["lm_targets"][:, 1:].flatten())
    assert model.eval()(**batch).lm_loss.item() == pytest.approx(loss.item(), abs=1e-5)
    assert torch.isfinite(found.loss)


def test_masked_replay_has_the_tokenizers_own_marks():
    words = masked_words()
    replay = ReplaySentences(["w20 w21", "w20 w21 w22 w23"], seed=0)
    batch = make("classification", words, lm_objective="masked", replay=replay)([{"text": "w5"}] * 2)
    rows = torch.where(batch["lm_targets"] == -100, batch["lm_input_ids"], batch["lm_targets"]).tolist()
    assert sorted(rows) == [[1, 20, 21, 2, 0, 0], [1, 20, 21, 22, 23, 2]]
    assert (batch["lm_targets"] != -100).sum(1).tolist() == [1, 1]
    equal(batch, input_ids=[[S, 5, C]] * 2)


def test_workers_replay_different_sentences():
    collate = make("classification", replay=ReplaySentences([f"w{n}" for n in range(4, 39)]))
    rows = [{"text": "w5"}] * 16
    found = [
        b["lm_input_ids"].flatten().tolist() for b in DataLoader(rows, 8, num_workers=2, collate_fn=collate)
    ]
    assert found[0] != found[1]


# Mistakes


def test_bad_options():
    with pytest.raises(ValueError, match="form must be one of .*found 'pairs'"):
        make("pairs")
    with pytest.raises(ValueError, match=r'"causal", "masked" or None, found .bidirectional.*ELMo'):
        make("classification", lm_objective="bidirectional")
    with pytest.raises(ValueError, match="no mask token"):
        make("classification", lm_objective="masked")
    with pytest.raises(ValueError, match=r'lm_on must be "all" or "gold", found .right'):
        make("multiple_choice", lm_on="right")
    with pytest.raises(ValueError, match=r"chooses among the texts.*found form .similarity"):
        make("similarity", lm_on="gold")
    with pytest.raises(ValueError, match="with replay"):
        make("multiple_choice", lm_on="gold", replay=ReplaySentences(["w5"]))
    with pytest.raises(ValueError, match="replay trains the language model"):
        make("classification", lm_objective=None, replay=ReplaySentences(["w5"]))
    with pytest.raises(ValueError, match=r"columns of form .classification. are text, found \['sentence'\]"):
        make("classification", columns={"sentence": "text"})
    with pytest.raises(ValueError, match=r"lie in \(0, 1\], found 15"):
        make("classification", masked_words(), lm_objective="masked", mlm_rate=15)
    with pytest.raises(ValueError, match="Call template.prepare"):
        JointLossCollator(tokenizer(WORDS), InputTemplate(), "classification")


def test_bad_rows():
    with pytest.raises(
        ValueError, match=r"reads the columns text; a row has no text, but \['label'\].*remove_unused"
    ):
        make("classification")([{"label": 1}])
    uneven = [CHOICES[0], {"context": "w5", "choices": ["w6", "w7", "w8"], "label": 2}]
    with pytest.raises(ValueError, match=r"as many choices, found \[2, 3\]"):
        make("multiple_choice")(uneven)
    with pytest.raises(ValueError, match=r"right choices in 0..1 \(or -100\), found \[2\]"):
        make("multiple_choice", lm_on="gold")([{"context": "w5", "choices": ["w6", "w7"], "label": 2}])


# To the end


def examples(form, count=16):
    """Tasks that can be learnt from one word."""
    rows = []
    for number in range(count):
        label, word = number % 2, f"w{10 + number % 8}"
        key = f"w{30 + label}"
        rows.append(
            {
                "classification": {"text": f"{word} {key}", "label": label},
                "entailment": {"premise": f"{word} {key}", "hypothesis": "w20", "label": label},
                "similarity": {"first": word, "second": f"{key} w21", "label": float(label)},
                "multiple_choice": {
                    "context": word,
                    "choices": [f"w3{label} w22", f"w3{1 - label}"],
                    "label": label,
                },
            }[form]
        )
    return rows


def train(form, folder, masked=False, **options):
    torch.manual_seed(0)
    words = masked_words() if masked else tokenizer(WORDS)
    regression = "regression" if form == "similarity" else None
    outputs = {"num_labels": 1, "problem_type": regression} if regression else {}
    model = model_for(form, words, masked, **outputs)
    options |= {"lm_objective": "masked", "generator": torch.Generator().manual_seed(5)} if masked else {}
    trainer = JointLossTrainer(
        model,
        TrainingArguments(
            str(folder),
            num_train_epochs=40 if masked else 8,
            per_device_train_batch_size=8,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            remove_unused_columns=False,
        ),
        data_collator=make(form, words, problem_type=regression, **options),
        train_dataset=examples(form),
    )
    trainer.train()
    logs = [record for record in trainer.state.log_history if "loss" in record]
    return logs, {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_training_lowers_both_losses_and_repeats(form, masked, tmp_path):
    logs, weights = train(form, tmp_path, masked)
    for name in ("task_loss", "lm_loss"):
        early, late = (sum(log[name] for log in part) / 4 for part in (logs[:4], logs[-4:]))
        assert late < 0.8 * early, name
    again, same = train(form, tmp_path, masked)
    assert [log["loss"] for log in again] == [log["loss"] for log in logs]
    assert all(torch.equal(weights[name], same[name]) for name in weights)


def test_replay_trains_and_repeats(tmp_path):
    def once():
        return train("classification", tmp_path, replay=ReplaySentences(["w5 w6 w7", "w8 w9 w5 w6"], seed=3))

    logs, weights = once()
    assert logs[-1]["lm_loss"] < 0.8 * logs[0]["lm_loss"]
    again, same = once()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert again[-1]["loss"] == logs[-1]["loss"]
