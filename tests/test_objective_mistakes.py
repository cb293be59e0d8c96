"""What goes wrong in pre-training stock models is said in one message: models, collators, configs, options and rows."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from stock_pretraining_models import COMMON, WORDPIECES, make, rows_of
from torch.utils.data import DataLoader
from transformers import BertConfig, BertLMHeadModel, TrainingArguments
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.modeling.gathered_head import StockPretrainingLosses, kind_of
from heirloom.objectives.attention_masks import DataCollatorForUnifiedLM
from heirloom.objectives.masking import SpanMasking, WholeWordMasking
from heirloom.objectives.noise import Compose, ReplacedTokenNoise, TextInfilling, TokenDeletion
from heirloom.objectives.permutation import DataCollatorForPermutationLanguageModeling, PermutationTargets
from heirloom.objectives.pretraining_collators import (
    DataCollatorForDenoising,
    DataCollatorForMaskedLanguageModeling,
    DataCollatorForMass,
    DataCollatorForReplacedTokenDetection,
    DataCollatorForSpanCorruption,
)
from heirloom.objectives.text_packing import DataCollatorForCausalLanguageModeling
from heirloom.training.arguments import PretrainArguments
from heirloom.training.objectives import find_objective
from heirloom.training.stock_objectives import new_config, open_model
from heirloom.training.stock_pretraining import StockPretrainingTrainer

PERMUTED = PermutationTargets(unit="token")
ONE_SIDE = (0.5, 0.0, 0.25, 0.25)  # rows of one segment

# Models and collators


@pytest.mark.parametrize(
    ("name", "collator", "message"),
    [
        ("gpt2", DataCollatorForUnifiedLM(WORDPIECES), "UnifiedLM makes batches for a masked .*is a causal"),
        ("xlnet", DataCollatorForUnifiedLM(WORDPIECES), "UnifiedLM makes batches for a masked .*is a permut"),
        (
            "bert",
            DataCollatorForPermutationLanguageModeling(WORDPIECES, PERMUTED),
            "makes batches for a permutation .*BertForMaskedLM is a masked",
        ),
        (
            "gpt2",
            DataCollatorForPermutationLanguageModeling(WORDPIECES, PERMUTED),
            "makes batches for a permutation .*GPT2LMHeadModel is a causal",
        ),
        (
            "bert",
            DataCollatorForCausalLanguageModeling(WORDPIECES),
            "makes batches for a causal .*BertForMaskedLM is a masked",
        ),
        (
            "xlnet",
            DataCollatorForCausalLanguageModeling(WORDPIECES),
            "makes batches for a causal .*XLNetLMHeadModel is a permutation",
        ),
    ],
)
def test_a_collator_of_another_kind_of_model(name, collator, message, tmp_path):
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match=message):
        StockPretrainingTrainer(make(name), arguments, collator, rows_of(name))


def test_a_causal_head_on_positions_that_see_each_other():
    with pytest.raises(
        ValueError, match="'bert' sees the tokens that it would have to predict.*is_decoder=True"
    ):
        StockPretrainingLosses(BertLMHeadModel(BertConfig(**COMMON)))
    assert kind_of(BertLMHeadModel(BertConfig(**COMMON, is_decoder=True))) == "causal"
    assert kind_of(make("gpt2")) == "causal"


# Configs and options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "x"}, "no model can be made of --model .*'hidden_size'.*expected int, got str"),
        ({"hidden_size": 10, "num_attention_heads": 3}, r"no model can be made .*\(10\) is not a multiple"),
        ({"hidden_act": "foo"}, "no model can be made .*KeyError: 'foo'"),
        ({"num_attention_heads": 0}, "no model can be made .*ZeroDivisionError"),
        ({"hiden_size": 16}, "bert has no field 'hiden_size'. Did you mean hidden_size"),
        (
            {"model_type": "brt"},
            "names the model_type 'brt', which Transformers does not know. Did you mean bert",
        ),
        ({"model_type": ["bert"]}, r"names the model_type \['bert'\], which Transformers does not know"),
    ],
)
def test_a_config_that_makes_no_model(fields, message):
    small = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match=message) as caught:
        open_model(find_objective("mlm"), json.dumps(small | fields), WORDPIECES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mlm", "mass", "spanbert", "electra"])
def test_a_checkpoint_with_gaps_is_not_filled_with_random_numbers(name, tmp_path):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    kind = "electra" if name == "electra" else "bert"
    begun = "rtd" if name == "electra" else "mlm"
    model = open_model(find_objective(begun), json.dumps(sizes | {"model_type": kind}), WORDPIECES)
    gap = f"{kind}.encoder.layer.0.output.dense.bias"
    head = next(
        key for key in model.state_dict() if not key.startswith(kind) and key.endswith(".dense.weight")
    )
    for lost in (head, gap):  # a head may be new, a body not
        model.save_pretrained(tmp_path / "broken")
        tensors = load_file(tmp_path / "broken" / "model.safetensors")
        del tensors[lost]
        save_file(tensors, tmp_path / "broken" / "model.safetensors", {"format": "pt"})
        if lost == head:
            open_model(find_objective(name), str(tmp_path / "broken"), WORDPIECES)
    with pytest.raises(ValueError, match=f"broken lacks weights of its model: {gap}. Copy"):
        open_model(find_objective(name), str(tmp_path / "broken"), WORDPIECES)


def test_the_shell_says_it_without_a_traceback(tmp_path):
    WORDPIECES.save_pretrained(tmp_path / "words")
    (tmp_path / "text.txt").write_text("w1 w2\nw3 w4\n\nw5 w6\nw7 w8\n")
    command = ["pretrain", "bert-small", "--train_file", str(tmp_path / "text.txt"), "--objective", "mlm"]
    command += ["--tokenizer", str(tmp_path / "words"), "--output_dir", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*command, "--model", '{"model_type": "bert", "hidden_size": "x"}'])
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    assert done.stderr.startswith("heirloom: no model can be made of --model")


def test_options_of_stock_models_without_an_objective():
    with pytest.raises(
        ValueError, match="--max_tokens, --segmenter: for stock models only. Name what they learn"
    ):
        PretrainArguments(max_tokens=64, segmenter="jieba")
    done = CliRunner().invoke(app, ["pretrain", "lstm-lm-small", "--max_tokens", "64"])
    assert done.exit_code == 1
    assert done.stderr.startswith("heirloom: --max_tokens: for stock models only")


def test_a_transformer_xl_sees_one_side():
    objective, sizes = find_objective("transformer-xl"), {"model_type": "xlnet", "d_model": 8, "n_head": 2}
    config = new_config(json.dumps(sizes), WORDPIECES, objective.config)
    assert (config.attn_type, config.mem_len, config.use_mems_train) == ("uni", 512, True)
    assert new_config(json.dumps(sizes | {"mem_len": 9}), WORDPIECES, objective.config).mem_len == 9
    with pytest.raises(ValueError, match="attn_type='bi' instead of 'uni'"):
        open_model(objective, json.dumps(sizes | {"n_layer": 1, "attn_type": "bi"}), WORDPIECES)


# Rows


COLLATORS = {
    "tokens": DataCollatorForMaskedLanguageModeling(WORDPIECES),
    "words": DataCollatorForMaskedLanguageModeling(WORDPIECES, WholeWordMasking()),
    "spans": DataCollatorForMaskedLanguageModeling(WORDPIECES, SpanMasking()),
    "replaced": DataCollatorForReplacedTokenDetection(WORDPIECES, ReplacedTokenNoise()),
    "infilled": DataCollatorForDenoising(WORDPIECES, Compose((TextInfilling(),))),
    "corrupted": DataCollatorForSpanCorruption(WORDPIECES),
    "fragment": DataCollatorForMass(WORDPIECES),
    "unified": DataCollatorForUnifiedLM(WORDPIECES, ONE_SIDE),
    "permuted": DataCollatorForPermutationLanguageModeling(WORDPIECES, PERMUTED),
    "causal": DataCollatorForCausalLanguageModeling(WORDPIECES),
}


class Each:
    """One batch of every collator."""

    def __call__(self, rows):
        return {
            f"{kind} {name}": value
            for kind, collate in COLLATORS.items()
            for name, value in collate(rows).items()
        }


def with_words(rows):
    return [row | {"word_ids": [-1, *range(len(row["input_ids"]) - 2), -1]} for row in rows]


def test_the_number_of_workers_changes_no_batch():
    rows = with_words(rows_of("xlnet"))
    found = [list(DataLoader(rows, 3, num_workers=workers, collate_fn=Each())) for workers in (0, 1, 2)]
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", [name for name in COLLATORS if name != "causal"])
@pytest.mark.parametrize("ids", [[1, 2], [1], [2, 0, 3]])
def test_rows_without_ordinary_tokens(name, ids):
    row = with_words([{"input_ids": ids}])[0] | {"word_ids": [-1] * len(ids)}
    with pytest.raises(
        ValueError, match="row 0 of the batch has no token that can be masked.*leave such rows out"
    ):
        COLLATORS[name]([row])


@pytest.mark.parametrize("name", ["tokens", "words", "spans", "replaced", "infilled", "fragment", "unified"])
def test_a_single_ordinary_token_has_a_finite_loss(name):
    """The shortest row that is allowed: three tokens."""
    models = {"replaced": "discriminator", "infilled": "bart", "fragment": "mass"}
    batch = COLLATORS[name](with_words([{"input_ids": [1, 9, 2]}]))
    assert torch.isfinite(StockPretrainingLosses(make(models.get(name, "bert")))(**batch).loss)


def test_rows_that_are_too_short_for_spans_of_targets():
    row = {"input_ids": [1, 9, 2]}
    with pytest.raises(ValueError, match="row 0 of the batch has 1 tokens .*span corruption needs 2"):
        COLLATORS["corrupted"]([row])
    with pytest.raises(ValueError, match="row 0 of the batch has one ordinary token"):
        COLLATORS["permuted"]([row])


@pytest.mark.parametrize("name", ["words", "spans"])
def test_words_that_nobody_marked(name):
    with pytest.raises(ValueError, match="needs a column 'word_ids'"):
        COLLATORS[name](rows_of("bert"))


def padded(rows, width=40, left=False):
    """Rows as a tokenizer with `padding="max_length"` makes them."""
    fills = {"input_ids": 0, "word_ids": -1, "token_type_ids": 0, "attention_mask": 0}
    found = []
    for row in rows:
        row = row | {"attention_mask": [1] * len(row["input_ids"])}
        more = {name: [fills[name]] * (width - len(value)) for name, value in row.items()}
        found.append({name: more[name] + row[name] if left else row[name] + more[name] for name in row})
    return found


@pytest.mark.parametrize("left", [False, True])
def test_padding_of_the_tokenizer_is_no_text(left):
    rows = with_words(rows_of("xlnet"))
    rows = [
        row | {"token_type_ids": [int(place > 3) for place in range(len(row["input_ids"]))]} for row in rows
    ]
    expected, found = Each()(rows), Each()(padded(rows, left=left))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", COLLATORS)
def test_columns_that_are_not_one_number_for_each_token(name):
    rows = with_words(rows_of("xlnet"))
    nones = [row | {"word_ids": [None if one < 0 else one for one in row["word_ids"]]} for row in rows]
    for key, value in COLLATORS[name](rows).items():
        assert torch.equal(COLLATORS[name](nones)[key], value)  # as BatchEncoding.word_ids() has it
    for wrong, message in (
        (
            {"word_ids": rows[0]["word_ids"][:-2]},
            "row 0 of the batch has 10 word_ids for 12 tokens; expected one",
        ),
        ({"attention_mask": [1, 1]}, "row 0 of the batch has 2 attention_mask for 12 tokens"),
        ({"word_ids": ["a"] * 12}, "expected a column 'word_ids' of whole numbers, got"),
    ):
        with pytest.raises(ValueError, match=message):
            COLLATORS[name]([rows[0] | wrong])
    with pytest.raises(ValueError, match="row 1 has"):
        COLLATORS[name]([rows[0], {"input_ids": [1, 9, 8, 2]}])
    with pytest.raises(ValueError, match=r"expected rows with input_ids, got \['text'\]"):
        COLLATORS[name]([{"text": "a"}])


def test_columns_that_mean_something_else():
    with pytest.raises(
        ValueError, match="row 0 of the batch has 2 topic_ids for 4 tokens.*Leave out a column"
    ):
        COLLATORS["tokens"]([{"input_ids": [1, 8, 9, 2], "topic_ids": [3, 4]}])


@pytest.mark.parametrize(("name", "collator"), [("bert", "tokens"), ("gpt2", "causal"), ("mass", "fragment")])
def test_rows_beyond_the_positions_of_a_stock_model(name, collator):
    batch = COLLATORS[collator]([{"input_ids": [1, *[9] * 39, 2]}])
    with pytest.raises(
        ValueError, match=r"has 40 positions, found input_ids of 41. Cut rows .*max_length=40"
    ):
        StockPretrainingLosses(make(name))(**batch)


def test_texts_beyond_the_positions_of_a_decoder():
    batch = DataCollatorForDenoising(WORDPIECES, TokenDeletion(0.5))([{"input_ids": [1, *[9] * 39, 2]}])
    with pytest.raises(ValueError, match="has 40 positions, found labels of 41"):
        StockPretrainingLosses(make("bart"))(**batch)


def test_a_permutation_model_in_half_precision():
    batch, model = COLLATORS["permuted"](rows_of("xlnet")), make("xlnet")
    loss = StockPretrainingLosses(model)(**batch).loss.item()
    losses = StockPretrainingLosses(model.to(torch.bfloat16))
    with pytest.raises(
        ValueError, match=r"has weights of torch.bfloat16, .* Load it with dtype=torch.float32"
    ):
        losses(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert losses(**batch).loss.item() == pytest.approx(loss, rel=0.05)
