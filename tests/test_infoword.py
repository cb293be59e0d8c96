"""InfoWord: n-grams and wrong ones, the twin's losses and gradients, parts that sum to a step, training, checkpoints, errors."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from own_code import check_own_code
from reference import infoword_naive as naive
from reference.joint_loss_naive import (
    MASK,
    POSITIONS,
    VOCAB,
    gradients,
    language_model,
    largest_difference,
    pad,
)
from stock_lms import tokenizer
from stock_pretraining_models import SPECIAL, WORDPIECES, make
from torch.nn import functional as F
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, TrainingArguments

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_infoword import InfoWordConfig
from heirloom.modeling.modeling_infoword import InfoWordForPreTraining, NgramContrastiveHead
from heirloom.objectives.ngram_pairs import DataCollatorForNgramContrast, NgramPairs
from heirloom.training.objectives import find_objective
from heirloom.training.stock_objectives import open_model
from heirloom.training.stock_pretraining import StockPretrainingTrainer

WAYS = [("infonce", "in_batch"), ("infonce", "shuffled"), ("margin", "in_batch"), ("margin", "replaced")]
PLACES = [(1, 4), (2, 6), (4, 5), (1, 4), (5, 9)]  # of each row's n-gram


def made(contrast="infonce", negatives="in_batch", kind="bert", dtype=torch.float64, **options):
    torch.manual_seed(1)
    options = {"temperature": 8.0, "contrast": contrast, "negatives": negatives} | options
    return InfoWordForPreTraining.from_encoder(language_model(kind), **options).to(dtype)


def examples() -> tuple[list, ...]:
    """Rows with hidden tokens, labels, contexts, n-grams and wrong ones; rows 0 and 3 have the same n-gram, row 2 no other."""
    draw = torch.Generator().manual_seed(5)
    whole = [torch.randint(3, MASK, (n,), generator=draw).tolist() for n in (6, 9, 11, 5, 13)]
    whole[3][1:4] = whole[0][1:4]
    labels = [[one if place % 3 == 1 else -100 for place, one in enumerate(row)] for row in whole]
    rows = [[MASK if place % 3 == 1 else one for place, one in enumerate(row)] for row in whole]
    both = list(zip(whole, PLACES, strict=True))
    contexts = [[*row[:start], *[MASK] * (stop - start), *row[stop:]] for row, (start, stop) in both]
    grams = [row[start:stop] for row, (start, stop) in both]
    wrong = [[1, *gram[::-1], 2] for gram in grams]
    return rows, labels, contexts, [[1, *gram, 2] for gram in grams], wrong


def batch(start: int = 0, stop: int = 5, given: bool = False) -> dict:
    """Keyword arguments of `forward`, of some of the rows."""
    rows, labels, contexts, grams, wrong = (some[start:stop] for some in examples())
    width, small = max(map(len, rows)), max(map(len, grams))
    found = {
        "input_ids": pad(rows, 0, width),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, width),
        "labels": pad(labels, -100, width),
        "ngram_context_ids": pad(contexts, 0, width),
        "ngram_ids": pad(grams, 0, small),
        "ngram_mask": pad([[1] * len(gram) for gram in grams], 0, small),
    }
    return found | ({"negative_ngram_ids": pad(wrong, 0, small)} if given else {})


# The head


def test_infonce_is_the_cross_entropy_of_the_diagonal():
    draw = torch.randn(2, 7, 16)
    found = NgramContrastiveHead(temperature=3.0)(*draw, draw[1], torch.eye(7, dtype=torch.bool))
    expected = F.cross_entropy(draw[0] @ draw[1].T / 3, torch.arange(7), reduction="sum")
    torch.testing.assert_close(found, expected)


def test_unrelated_vectors_cost_log_b():
    axes, same = torch.eye(24), torch.eye(12, dtype=torch.bool)
    found = NgramContrastiveHead()(axes[:12], axes[12:], axes[12:], same) / 12
    assert found.item() == pytest.approx(math.log(12), abs=1e-6)


def test_what_is_the_same_gets_no_gradient():
    for loss in ("infonce", "margin"):
        contexts, ngrams, others = torch.randn(4, 8), torch.randn(4, 8), torch.randn(6, 8, requires_grad=True)
        same = torch.zeros(4, 6, dtype=torch.bool)
        same[:, 2] = True
        found = NgramContrastiveHead(loss, "shuffled", 3.0)(contexts, ngrams, others, same)
        found.backward()
        assert others.grad[2].abs().max() == 0
        assert others.grad[[0, 1, 3, 4, 5]].abs().max() > 0
        without = NgramContrastiveHead(loss, "shuffled", 3.0)(
            contexts, ngrams, others[[0, 1, 3, 4, 5]], same[:, :5] & False
        )
        torch.testing.assert_close(found, without)


def test_the_margin_is_one():
    head, none = NgramContrastiveHead("margin", "shuffled"), torch.zeros(3, 1, dtype=torch.bool)
    context = torch.ones(3, 1)
    real, wrong = torch.tensor([[2.0], [2.0], [2.0]]), torch.tensor([[[1.0]], [[0.5]], [[1.25]]])
    assert head(context, real, wrong, none).item() == 0.25
    assert head(context, real, wrong, ~none).item() == 0


# The model


@pytest.mark.parametrize("way", WAYS)
def test_losses_and_gradients_are_the_twins(way):
    model, given = made(*way, mlm_loss_weight=0.5, contrastive_loss_weight=2.0), way[1] != "in_batch"
    loss, mlm, contrast = naive.step_loss(model, *examples())
    loss.backward()
    expected = gradients(model)
    found = model.train()(**batch(given=given))
    assert found.mlm_loss.item() == pytest.approx(mlm.item(), abs=1e-6)
    assert found.contrastive_loss.item() == pytest.approx(contrast.item(), abs=1e-6)
    assert contrast.item() > 0.01
    assert found.loss.item() == pytest.approx(0.5 * mlm.item() + 2 * contrast.item(), abs=1e-6)
    found.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-6


@pytest.mark.parametrize("kind", ["roberta"])
def test_other_language_models(kind):
    model = made(kind=kind)
    loss, *_ = naive.step_loss(model, *examples())
    assert model(**batch()).loss.item() == pytest.approx(loss.item(), abs=1e-6)


def test_parts_sum_to_the_step():
    for way in (("margin", "shuffled"), ("infonce", "replaced")):
        model = made(*way)
        whole = model(**batch(given=True))
        whole.loss.backward()
        expected = gradients(model)
        for size in (1, 2, 3):
            parts = [batch(start, min(5, start + size), True) for start in range(0, 5, size)]
            counts = sum(model.count_items(part) for part in parts)
            assert counts.tolist() == [int((batch()["labels"] != -100).sum()), 5]
            outputs = [model(**part, num_items_in_batch=counts) for part in parts]
            sum(output.loss for output in outputs).backward()
            assert largest_difference(gradients(model), expected) < 1e-6
            single = [model(**part, num_items_in_batch=counts[0]) for part in parts]
            assert sum(one.mlm_loss.item() for one in single) == pytest.approx(whole.mlm_loss.item())


def test_in_batch_negatives_have_exact_means_of_the_batches_as_they_are():
    model = made()
    parts = [batch(0, 2), batch(2, 5)]
    counts = sum(model.count_items(part) for part in parts)
    found = [model(**part, num_items_in_batch=counts).contrastive_loss.item() for part in parts]
    alone = [model(**part).contrastive_loss.item() for part in parts]
    assert sum(found) == pytest.approx((2 * alone[0] + 3 * alone[1]) / 5)
    whole = model(**batch()).contrastive_loss.item()
    assert whole > sum(found) + 0.01  # more negatives
    one = model(**batch(1, 2))
    assert one.contrastive_loss.item() == 0
    assert one.loss.item() == one.mlm_loss.item() > 0
    first = model.first_rows(batch(), 2)
    torch.testing.assert_close(model(**first).loss, model(**batch(0, 2)).loss)  # wider by padding only


@pytest.mark.parametrize("way", WAYS)
def test_a_row_without_an_ngram_is_no_negative(way):
    model, some = made(*way), batch(given=way[1] != "in_batch")
    mask = some["ngram_mask"].clone()
    mask[[1, 4]] = 0
    fewer = {name: value[[0, 2, 3]] for name, value in some.items()}
    output, expected = model.train()(**some | {"ngram_mask": mask}), model(**fewer)
    assert output.contrastive_loss.item() == pytest.approx(expected.contrastive_loss.item())
    assert model.count_items(some | {"ngram_mask": mask}).tolist()[1] == 3
    output.loss.backward()
    assert all(value.isfinite().all() for value in gradients(model).values())
    none = model.first_rows(some, 0)
    assert len(none["input_ids"]) == 1
    assert model.count_items(none).tolist()[1] == 0
    assert model(**none).contrastive_loss.item() == 0


def test_a_batch_without_targets_has_a_finite_loss():
    model, some = made().train(), batch()
    found = model(**some | {"labels": torch.full_like(some["labels"], -100)})
    assert found.mlm_loss.item() == 0
    found.loss.backward()
    assert all(value.isfinite().all() for value in gradients(model).values())


# Batches


def rows_with_words(number=400, length=30):
    draw = np.random.default_rng(3)
    rows = []
    for _ in range(number):
        ids = draw.integers(len(SPECIAL), 60, length)
        ids[0], ids[-1] = 1, 2
        words = np.cumsum(draw.random(length) < 0.6) + 0
        words[0] = words[-1] = -1
        rows.append({"input_ids": ids.tolist(), "word_ids": words.tolist()})
    return rows


def test_a_row_loses_one_ngram_of_whole_words():
    rows = rows_with_words()
    found = DataCollatorForNgramContrast(WORDPIECES, seed=4)(rows)
    sizes, lengths = Counter(), found["ngram_mask"].sum(1) - 2
    for number, row in enumerate(rows):
        ids, words = torch.tensor(row["input_ids"]), row["word_ids"]
        context, gram = found["ngram_context_ids"][number], found["ngram_ids"][number]
        size = int(lengths[number])
        places = (context != ids).nonzero().flatten().tolist()
        assert places == list(range(places[0], places[0] + size))
        assert (context[places] == WORDPIECES.mask_token_id).all()
        assert gram[: size + 2].tolist() == [1, *ids[places].tolist(), 2]
        assert not gram[size + 2 :].any()
        inside = {words[place] for place in places}
        assert all((word in inside) == (place in places) for place, word in enumerate(words))
        sizes[len(inside)] += 1
    pmf = 0.8 ** np.arange(10) / sum(0.8 ** np.arange(10))  # long ones are cut at the ends of rows
    assert sizes[1] / 400 == pytest.approx(pmf[0], abs=0.09)
    assert max(sizes) == 10
    masked = found["labels"] != -100
    assert masked.sum(1).tolist() == [4] * 400  # as BERT: 15 per cent of 30, rounded to even
    different = (found["input_ids"] != found["ngram_context_ids"]).any(1)
    assert different.float().mean() > 0.95  # the two inputs hide different tokens
    assert "negative_ngram_ids" not in found
    other = DataCollatorForNgramContrast(WORDPIECES, seed=4, epoch=1)(rows)
    assert not torch.equal(other["ngram_context_ids"], found["ngram_context_ids"])


def test_wrong_ngrams():
    rows = [{"input_ids": row["input_ids"]} for row in rows_with_words()]
    rows[0]["input_ids"] = [1, 9, 9, 9, 9, 2]
    for way in ("shuffled", "replaced"):
        found = DataCollatorForNgramContrast(WORDPIECES, ngrams=NgramPairs(way))(rows)
        right, wrong, sizes = (
            found["ngram_ids"],
            found["negative_ngram_ids"],
            found["ngram_mask"].sum(1) - 2,
        )
        changed = (right != wrong).sum(1)
        orders = set()
        for one, other, size in zip(right.tolist(), wrong.tolist(), sizes.tolist(), strict=True):
            if way == "shuffled":
                assert sorted(one) == sorted(other)
                assert (one == other) == (len(set(one[1 : size + 1])) == 1)
                if size == 3 and len(set(one[1:4])) == 3:
                    orders.add(tuple(one.index(token) for token in other[1:4]))
            else:
                places = [place for place in range(len(one)) if one[place] != other[place]]
                assert places == [1 + (size - 1) // 2]
                assert other[places[0]] >= len(SPECIAL)
        assert way == "replaced" or len(orders) == 5  # all but the right one
        assert changed.max() > 3 or way == "replaced"


def test_tokenizers_without_marks_and_rows_without_words():
    bare = tokenizer(60, ("[PAD]", "[MASK]"), pad_token="[PAD]", mask_token="[MASK]")
    found = DataCollatorForNgramContrast(bare)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    assert found["ngram_ids"][1].tolist()[0] == 8
    assert found["ngram_mask"][1].sum() == 1
    with pytest.raises(ValueError, match="masking needs a mask token"):
        DataCollatorForNgramContrast(tokenizer(60))
    with pytest.raises(ValueError, match="row 0 of the batch has no token that can be masked"):
        DataCollatorForNgramContrast(WORDPIECES)([{"input_ids": [1, 2]}])
    with pytest.raises(
        ValueError, match='negatives must be "in_batch", "shuffled" or "replaced", got \'all\''
    ):
        NgramPairs("all")
    with pytest.raises(ValueError, match="max_length must be 1 or more"):
        NgramPairs(max_length=0)


# Training


def trained(folder, model, size, accumulate, **more):
    options = {"max_steps": 2, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0} | more
    options.setdefault("per_device_eval_batch_size", 3)
    collate = options.pop("data_collator", None)
    rows = options.pop("rows", [{"number": number} for number in range(4)])
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=size, gradient_accumulation_steps=accumulate,
        logging_steps=1, report_to=[], use_cpu=True, save_strategy="no", train_sampling_strategy="sequential",
        disable_tqdm=True, **options,
    )  # fmt: skip
    given = model.config.negatives != "in_batch"
    collate = collate or (lambda some: batch(some[0]["number"], some[-1]["number"] + 1, given))
    trainer = StockPretrainingTrainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, data_collator=collate
    )
    trainer.train()
    return trainer, [log for log in trainer.state.log_history if "mlm_loss" in log]


def test_accumulation_changes_nothing_but_in_batch_negatives(tmp_path):
    (one, first), (other, second) = (
        trained(tmp_path, made("margin", "shuffled"), *how) for how in ((4, 1), (1, 4))
    )
    weights = [dict(trainer.model.named_parameters()) for trainer in (one, other)]
    assert largest_difference(*weights) < 1e-7
    for log, same in zip(first, second, strict=True):
        for part in ("loss", "mlm_loss", "contrastive_loss"):
            assert log[part] == pytest.approx(same[part], rel=1e-4)
    metrics, whole = one.evaluate(), one.model(**batch(0, 4, True))
    for part in ("loss", "mlm_loss", "contrastive_loss"):
        assert metrics[f"eval_{part}"] == pytest.approx(whole[part].item(), rel=1e-6)
    parts = [made()(**batch(start, start + 2)).contrastive_loss.item() for start in (0, 2)]
    _, logs = trained(tmp_path, made(), 2, 2, max_steps=1)
    assert logs[0]["contrastive_loss"] == pytest.approx(sum(parts) / 2, rel=1e-4)


@pytest.mark.parametrize("way", [("infonce", "in_batch"), ("margin", "replaced")])
def test_training_learns_both(way, tmp_path):
    torch.manual_seed(0)
    config = make("bert").config
    config.initializer_range = 0.2  # at 0.02 all n-grams look alike for the first fifty steps
    model = InfoWordForPreTraining(
        InfoWordConfig(text_config=config, contrast=way[0], negatives=way[1], temperature=4.0)
    )
    collator = DataCollatorForNgramContrast(WORDPIECES, ngrams=NgramPairs(way[1]))
    rows = [
        {"input_ids": [1, *range(start, start + 10), 2]} for start in range(6, 50, 6)
    ]  # each its own words
    options = {"rows": rows, "data_collator": collator, "optim": "adamw_torch", "max_steps": 50}
    _, logs = trained(tmp_path, model, 8, 1, learning_rate=0.01, **options)
    for part in ("mlm_loss", "contrastive_loss"):
        begin, end = (sum(log[part] for log in some) / 10 for some in (logs[:10], logs[-10:]))
        assert end < 0.8 * begin, (part, begin, end)


def test_the_objective_has_a_name(tmp_path):
    objective = find_objective("infoword")
    assert objective.words
    assert isinstance(objective.make_collator(WORDPIECES), DataCollatorForNgramContrast)
    fields = make("bert").config.to_dict()
    new = open_model(objective, json.dumps(fields), WORDPIECES)
    assert type(new) is InfoWordForPreTraining
    new.save_pretrained(tmp_path / "ours")
    new.language_model.save_pretrained(tmp_path / "stock")
    for folder in ("ours", "stock"):
        again = open_model(objective, str(tmp_path / folder), WORDPIECES)
        assert type(again) is InfoWordForPreTraining
        for key, value in new.state_dict().items():
            assert torch.equal(again.state_dict()[key], value), key


# Checkpoints


def test_round_trip_and_stock_checkpoints(tmp_path):
    model = made("margin", "replaced", dtype=torch.float32)
    some = batch(given=True)
    model.save_pretrained(tmp_path / "info")
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path / "info", output_loading_info=True)
    assert type(loaded) is InfoWordForPreTraining
    assert not any(report.values())
    assert (loaded.contrast.loss, loaded.contrast.negatives, loaded.contrast.temperature) == (
        "margin",
        "replaced",
        8.0,
    )
    torch.testing.assert_close(loaded(**some).loss, model(**some).loss)
    assert loaded.config.text_config is loaded.language_model.config
    saved = json.loads((tmp_path / "info" / "config.json").read_text())
    assert saved["architectures"] == ["InfoWordForPreTraining"]
    assert saved["auto_map"] == AUTO_MAP["infoword"]
    loaded.language_model.save_pretrained(tmp_path / "lm")
    stock, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "lm", output_loading_info=True)
    assert not any(report.values())
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(stock(ids).logits, model(ids).logits)
    again, report = InfoWordForPreTraining.from_pretrained(
        tmp_path / "lm", config=loaded.config, output_loading_info=True
    )
    assert not any(report.values())
    assert torch.equal(again(ids).logits, loaded(ids).logits)
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    some["labels"][0, 1] = some["ngram_ids"][0, 1] = VOCAB + 2
    assert model(**some).loss.isfinite()
    assert model.config.text_config.vocab_size == VOCAB + 3


def test_half_precision_on_the_way_in(tmp_path):
    language_model("bert").save_pretrained(tmp_path)
    model = InfoWordForPreTraining.from_encoder(tmp_path, {"dtype": torch.bfloat16})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    found = model(**batch())
    assert found.loss.dtype == torch.float32
    assert found.loss.isfinite()


# What is wrong


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"contrast": "hinge"}, "contrast must be one of infonce, margin, found 'hinge'"),
        ({"negatives": "all"}, "negatives must be one of in_batch, shuffled, replaced, found 'all'"),
        ({"temperature": 0}, "temperature must be positive, found 0"),
        (
            {"contrastive_loss_weight": -1.0},
            "contrastive_loss_weight must be positive, found -1.0. Without a",
        ),
    ],
)
def test_bad_configs(options, words):
    with pytest.raises(Exception, match=words):
        InfoWordConfig(**options)


def test_models_that_do_not_fit():
    for kind in ("gpt2", "elmo"):
        with pytest.raises(ValueError, match="masked"):
            InfoWordForPreTraining.from_encoder(language_model(kind))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, "needs input_ids"),
        ({"input_ids": torch.full((5, 13), VOCAB)}, "input_ids must lie in 0..39, found 40..40"),
        ({"input_ids": torch.ones(5, 25).long()}, f"{POSITIONS} positions, found rows of 25. Cut rows"),
        ({"labels": None}, "needs labels, ngram_context_ids, ngram_ids, ngram_mask, found no labels. Use"),
        (
            {"ngram_ids": None, "ngram_mask": None},
            "found no ngram_ids, ngram_mask. Use DataCollatorForNgramContrast",
        ),
        ({"labels": torch.full((5, 13), 40)}, "labels must lie in 0..39"),
        ({"ngram_context_ids": torch.ones(5, 12).long()}, "ngram_context_ids must be ids like input_ids"),
        ({"ngram_ids": torch.full((5, 6), 40)}, "ngram_ids must lie in 0..39"),
        (
            {"ngram_ids": torch.ones(4, 6).long()},
            r"ngram_ids must be ids of one n-gram .* \(5, 6\); found \(4, 6\)",
        ),
        ({"ngram_ids": torch.ones(5, 25).long()}, "found n-grams of 25"),
        ({"ngram_mask": torch.ones(5, 3).long()}, "ngram_mask must be 1 at tokens"),
        (
            {"negative_ngram_ids": torch.ones(5, 6).long()},
            "negatives='in_batch' does not read. Set negatives",
        ),
        ({"num_items_in_batch": torch.ones(1)}, "must hold 2 numbers"),
    ],
)
def test_bad_batches(changes, words):
    with pytest.raises(ValueError, match=words):
        made(dtype=torch.float32).train()(**batch() | changes)


def test_wrong_ngrams_are_missed():
    with pytest.raises(ValueError, match=r"found no negative_ngram_ids. Use .* NgramPairs\('shuffled'\)"):
        made("margin", "shuffled", dtype=torch.float32)(**batch())


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_code(tmp_path):
    """In a process that has no heirloom."""
    check_own_code(made(dtype=torch.float32), batch(), tmp_path)
