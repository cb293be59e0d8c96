"""ERNIE 2.0: five tasks from documents, added one after another to one model; the masked language model as a task."""

import copy
import random

import numpy as np
import pytest
import torch
from reference.joint_loss_naive import MASK, VOCAB, gradients, language_model, largest_difference
from stock_lms import tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoModel, ErnieConfig, ErnieForMaskedLM, PreTrainedTokenizerFast, TrainingArguments

from heirloom.modeling.modeling_multi_task import MultiTaskModel
from heirloom.objectives.multi_task import MultiTaskCollator
from heirloom.objectives.reordering import orders_of
from heirloom.objectives.tokenized_tasks import TokenizedTaskCollator, capitalization_blocks
from heirloom.training.ernie2 import ernie2_rows, ernie2_tasks, ernie2_trainer

IGNORED = -100
TASKS = ernie2_tasks(2)
NAMES = [task["name"] for task in TASKS]
MLM = [
    {"name": "words", "kind": "masked_lm", "weight": 0.5},
    {"name": "sst", "kind": "classification", "num_labels": 2},
]


def uncased() -> PreTrainedTokenizerFast:
    """A tokenizer that lower-cases, from which capitals cannot be seen."""
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", ".", *(f"w{number}" for number in range(34))]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **names)


WORDS = uncased()


def documents() -> list[list[str]]:
    """Capitals are words of even numbers."""
    draw, found = random.Random(0), []
    for number in range(8):
        words = [f"w{(5 * number + place) % 34}" for place in range(4)]
        words = [word.upper() if int(word[1:]) % 2 == 0 else word for word in words]
        found.append([" ".join(draw.choices(words, k=draw.randint(3, 5))) + " ." for _ in range(5)])
    return found


def ernie(tasks: int = 5, **options) -> ErnieForMaskedLM:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"vocab_size": VOCAB, "max_position_embeddings": 24, "hidden_dropout_prob": 0.0}
    sizes |= {"attention_probs_dropout_prob": 0.0, "use_task_id": True, "task_type_vocab_size": tasks}
    torch.manual_seed(1)
    return ErnieForMaskedLM(ErnieConfig(**sizes | options))


def multi(encoder=None, tasks=None) -> MultiTaskModel:
    torch.manual_seed(2)
    return MultiTaskModel.from_backbone_pretrained(
        encoder or ernie(), tasks=tasks or TASKS, classifier_dropout=0.0
    )


@pytest.fixture(scope="module")
def rows():
    return ernie2_rows(documents(), WORDS, max_tokens=20, segments=2)


# Rows


def test_tasks_and_rows(rows):
    assert list(rows) == NAMES
    kinds = ["masked_lm", "tokens", "tokens", "classification", "classification"]
    assert [task["kind"] for task in TASKS] == kinds
    assert len(orders_of(2)) == TASKS[3]["num_labels"] == 3
    assert ernie2_tasks()[3]["num_labels"] == 9
    assert "word_ids" in rows["knowledge_masking"][0]
    for name in NAMES:
        assert max(len(rows[name][number]["input_ids"]) for number in range(len(rows[name]))) <= 20
    for name, task in zip(NAMES[3:], TASKS[3:], strict=True):
        assert {rows[name][number]["labels"] for number in range(len(rows[name]))} <= set(
            range(task["num_labels"])
        )


def test_capitals_come_from_the_text_as_it_is_written(rows):
    blocks, seen = rows["capitalization"], []
    for number in range(len(blocks)):
        row = blocks[number]
        for token, label in zip(WORDS.convert_ids_to_tokens(row["input_ids"]), row["labels"], strict=True):
            seen.append(label)
            word = int(token[1:]) % 2 == 0 if token[0] == "w" else False
            assert label == (IGNORED if token in ("[CLS]", "[SEP]") else int(word))
    assert {0, 1, IGNORED} == set(seen)
    text = capitalization_blocks([["", "W1 w2 ."], [], ["w3"]], WORDS)
    assert [text[number]["labels"].tolist() for number in range(2)] == [
        [-100, 1, 0, 0, -100],
        [-100, 0, -100],
    ]
    assert text[0]["input_ids"].tolist() == WORDS("[CLS] w1 w2 . [SEP]")["input_ids"]


# Training


def test_all_stages(rows, tmp_path):
    """Each task is in the log from its stage on, as often as the schedule says, and falls."""
    args = TrainingArguments(
        tmp_path, per_device_train_batch_size=8, learning_rate=5e-3, lr_scheduler_type="constant", logging_steps=1,
        report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    few = {name: [rows[name][number] for number in range(8)] for name in NAMES}
    trainer = ernie2_trainer(multi(), few, WORDS, args, total=24, carry=3, held_out=few)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    logs = [record for record in trainer.state.log_history if "task_loss" in record]
    assert len(logs) == 5 * 24
    begin = 0
    for stage, name in enumerate(NAMES):
        size = 3 * stage + 24 - 3 * (4 - stage)
        losses = [record[f"{name}_loss"] for record in logs if f"{name}_loss" in record]
        assert len(losses) == 24
        assert not any(f"{name}_loss" in record for record in logs[:begin])
        assert sum(f"{name}_loss" in record for record in logs[begin : begin + size]) == 24 - 3 * (4 - stage)
        assert sum(losses[-4:]) < 0.9 * sum(losses[:4]), name
        assert after[f"eval_{name}_loss"] < 0.9 * before[f"eval_{name}_loss"], name
        assert 0 <= after[f"eval_{name}_accuracy"] <= 1
        begin += size
    assert after["eval_capitalization_accuracy"] > 0.9
    assert after["eval_loss"] == pytest.approx(sum(after[f"eval_{name}_loss"] for name in NAMES))


def test_a_shorter_training(rows, tmp_path):
    args = TrainingArguments(
        tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3, logging_steps=1, report_to=[],
        use_cpu=True, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    user = {name: rows[name] for name in NAMES[:1]}
    tasks = [*TASKS, {"name": "ir", "kind": "classification", "num_labels": 3}]
    clicks = [{**WORDS("[CLS] w1 w2 [SEP]", "w3 [SEP]"), "labels": label} for label in (0, 1, 2, None)]
    model = multi(language_model("bert"), tasks)  # no task embeddings
    trainer = ernie2_trainer(model, {**user, "ir": clicks}, WORDS, args, total=2, carry=1)
    trainer.train()
    logs = [record for record in trainer.state.log_history if "task_loss" in record]
    assert [sorted(name for name in record if name in ("ir_loss", "knowledge_masking_loss")) for record in logs] == [
        ["knowledge_masking_loss"], *sorted([["knowledge_masking_loss"], ["ir_loss"]], reverse="ir_loss" not in logs[1])
    ]  # fmt: skip
    assert args.num_train_epochs == 3
    assert not any(
        "task_type_ids" in batch for batch in [trainer.data_collator([{**clicks[0], "task": "ir"}])]
    )


def test_a_task_moves_its_own_embedding_only(rows):
    model = multi().train()
    collate = TokenizedTaskCollator(WORDS, TASKS, task_types=True)
    table = model.language_model.ernie.embeddings.task_type_embeddings.weight
    for number, name in enumerate(NAMES):
        model.zero_grad()
        batch = collate([{**rows[name][0], "task": name}, {**rows[name][1], "task": name}])
        assert batch["task_id"].tolist() == [number] * 2
        model(**batch).loss.backward()
        assert (table.grad.abs().sum(1) > 0).tolist() == [one == number for one in range(5)]


def test_padding_of_the_tokenizer_is_no_text(rows):
    collate = TokenizedTaskCollator(WORDS, TASKS)
    for name in NAMES:
        plain = [{**rows[name][number], "task": name} for number in (0, 1)]
        longer = []
        for row in plain:
            size = len(row["input_ids"])
            fills = {"labels": -100}
            more = {
                key: [*value, *[fills.get(key, 0)] * 3]
                for key, value in row.items()
                if np.shape(value) == (size,)
            }
            longer.append({**row, **more, "attention_mask": [1] * size + [0] * 3})
        expected, found = collate(plain), collate(longer)
        assert all(torch.equal(found[key], value) for key, value in expected.items()), name


# The masked language model as a task


def words_of(start: int = 0, stop: int = 4) -> dict:
    """A batch with different numbers of hidden places."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(1, MASK, (4, 9), generator=draw)
    hidden = torch.arange(9) < torch.tensor([[1], [3], [0], [5]])
    labels = ids.masked_fill(~hidden, IGNORED)
    batch = {
        "input_ids": ids.masked_fill(hidden, MASK),
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
    }
    return {name: value[start:stop] for name, value in batch.items()} | {"task_id": 0}


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_masked_language_model_is_a_task(kind, tmp_path):
    model, some = multi(language_model(kind), MLM).double(), words_of()
    stock = copy.deepcopy(model.language_model)
    wanted = stock(some["input_ids"], some["attention_mask"], labels=some["labels"])
    (0.5 * wanted.loss).backward()
    expected = gradients(stock)
    shown = model(**some)
    torch.testing.assert_close(shown.logits, wanted.logits)
    found = model.train()(**some)
    assert found.logits.shape == (9, VOCAB)
    assert found.loss.item() == pytest.approx(0.5 * wanted.loss.item(), abs=1e-6)
    assert shown.loss.item() == pytest.approx(found.loss.item(), abs=1e-6)
    found.loss.backward()
    assert largest_difference(gradients(model.language_model), expected) < 1e-6
    parts = [words_of(0, 1), words_of(1, 4)]
    counts = sum(model.count_items_by_task(part) for part in parts)
    assert counts.tolist() == [9, 0]
    halves = sum(model(**part, num_items_in_batch=counts).loss for part in parts)
    assert halves.item() == pytest.approx(found.loss.item(), abs=1e-6)
    model.eval().save_pretrained(tmp_path)
    loaded, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    torch.testing.assert_close(loaded.double()(**some).loss, shown.loss)


def test_one_more_task():
    model = multi(language_model("bert"), MLM[1:])
    model.add_task(name="words", kind="masked_lm")
    assert model(**words_of() | {"task_id": 1}).loss.isfinite()
    with pytest.raises(ValueError, match="needs a masked language model of albert, .*found GPT2LMHeadModel"):
        multi(language_model("gpt2"), MLM)


# Errors


def test_bad_rows(rows):
    collate, row = (
        TokenizedTaskCollator(WORDS, [*TASKS, {"name": "qa", "kind": "ranking"}]),
        rows["capitalization"][0],
    )

    def refused(words, *rows):
        with pytest.raises(ValueError, match=words):
            collate(rows)

    refused("every batch must be of one task", {"task": NAMES[1], **row}, {"task": NAMES[2], **row})
    refused("column `task` must be one of .*found 'nsp'", {"task": "nsp", **row})
    refused("ranking task 'qa' reads texts, .* Use MultiTaskCollator", {"task": "qa", **row})
    refused(
        "tokens task 'capitalization' needs rows with input_ids, labels; a row has no labels",
        {"task": NAMES[1], "input_ids": [1]},
    )
    refused(
        r"needs a label for each token, found labels of shape \(2,\) for \(1,\) ids",
        {"task": NAMES[1], "input_ids": [1], "labels": [1, 2]},
    )
    with pytest.raises(
        ValueError, match="masked_lm task 'words' reads rows of ids. Use TokenizedTaskCollator"
    ):
        MultiTaskCollator(WORDS, MLM)([{"task": "words", "text": "w1"}])
    with pytest.raises(ValueError, match="needs the token pad"):
        TokenizedTaskCollator(tokenizer(9, ("[MASK]",), mask_token="[MASK]"), TASKS)
    for bad in ([[[1, 2]]], ["w1 w2", "w3"], []):
        with pytest.raises(ValueError, match="capitals need documents as lists of sentences that are texts"):
            ernie2_rows(bad, WORDS)


def test_models_that_do_not_fit(rows, tmp_path):
    args = TrainingArguments(tmp_path, use_cpu=True, report_to=[])
    with pytest.raises(
        ValueError, match="5 tasks, but its language model has 3 task embeddings. Make one with task_type"
    ):
        ernie2_trainer(multi(ernie(3)), rows, WORDS, args)
    with pytest.raises(ValueError, match="total must be above carry"):
        ernie2_trainer(multi(), rows, WORDS, args, total=8, carry=2)
    some = words_of() | {"task_type_ids": torch.zeros(4, 9).long()}
    with pytest.raises(
        ValueError, match="task_type_ids need a language model with task embeddings .*found 'bert'"
    ):
        multi(language_model("bert"), MLM)(**some)
    with pytest.raises(ValueError, match="task_type_ids must lie in 0..1, found 2..2"):
        multi(ernie(2), MLM)(**some | {"task_type_ids": torch.full((4, 9), 2)})
    with pytest.raises(ValueError, match="task_type_ids must be the number of a task at each token"):
        multi(ernie(2), MLM)(**some | {"task_type_ids": torch.zeros(4, 8).long()})
    with pytest.raises(
        ValueError, match=r"labels of masked_lm task 'words' must have shape \(4, 9\), found \(4,\)"
    ):
        multi(language_model("bert"), MLM).train()(**words_of() | {"labels": torch.zeros(4).long()})
