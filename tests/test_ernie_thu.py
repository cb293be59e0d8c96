"""ERNIE of Tsinghua: the twin's losses and gradients, BERT where there are no entities, candidates, checkpoints, errors."""

import json
import os
import subprocess
import sys

import pytest
import torch
from reference import ernie_thu_naive as naive
from reference.joint_loss_naive import BERTS, MASK, POSITIONS, VOCAB, gradients, largest_difference, pad
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining, BertConfig, BertForPreTraining

from heirloom.modeling.auto_map import AUTO_MAP
from heirloom.modeling.configuration_ernie_thu import ErnieThuConfig
from heirloom.modeling.modeling_ernie_thu import ErnieThuForPreTraining, ErnieThuModel, renamed

SIZES = BERTS | {"num_hidden_layers": 4, "num_text_layers": 1, "entity_size": 6, "num_entity_heads": 2}
SIZES |= {"max_position_embeddings": POSITIONS}


def made(dtype=torch.float64, **changes) -> ErnieThuForPreTraining:
    """A tiny model without dropout: a layer that reads text, the first, a middle and the last layer of fusion."""
    torch.manual_seed(4)
    return ErnieThuForPreTraining(ErnieThuConfig(**SIZES | changes)).eval().to(dtype)


def vectors(number: int = 5) -> torch.Tensor:
    return torch.randn(number, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def examples() -> list[dict]:
    """Rows of different lengths; the third names nothing, the last has no label."""
    draw, found = torch.Generator().manual_seed(6), []
    for number, length in enumerate((6, 9, 5, 11)):
        row = torch.randint(1, MASK, (length,), generator=draw).tolist()
        hidden = range(2, length, 3) if number < 3 else ()
        true = {place: (place + number) % 5 for place in range(1, length, 3)} if number != 2 else {}
        seen = true | {1: 2, 4: -1} if true else true  # one exchanged, one dropped
        found.append({
            "labels": [one if place in hidden else -100 for place, one in enumerate(row)],
            "row": [MASK if place in hidden else one for place, one in enumerate(row)],
            "following": (0, 1, 1, -100)[number],
            "entities": [seen.get(place, -1) for place in range(length)],
            "entity_labels": [true.get(place, -100) if number < 3 else -100 for place in range(length)],
        })  # fmt: skip
    return found


def batch(some: list[dict]) -> dict:
    """Keyword arguments of `forward`."""
    width = max(len(one["row"]) for one in some)
    columns = {"input_ids": ("row", 0), "labels": ("labels", -100), "entities": ("entities", -1)}
    columns["entity_labels"] = ("entity_labels", -100)
    result = {name: pad([one[key] for one in some], fill, width) for name, (key, fill) in columns.items()}
    result["attention_mask"] = pad([[1] * len(one["row"]) for one in some], 0, width)
    result["next_sentence_label"] = torch.tensor([one["following"] for one in some])
    return result | {"entity_vectors": vectors()}


def test_losses_and_gradients_are_the_twins():
    model = made().train()
    means = naive.step_loss(model, examples(), vectors())
    sum(means).backward()
    expected = gradients(model)
    found = model(**batch(examples()))
    for name, mean in zip(("mlm_loss", "nsp_loss", "dea_loss"), means, strict=True):
        assert found[name].item() == pytest.approx(mean.item(), abs=1e-6)
    assert found.loss.item() == pytest.approx(sum(means).item(), abs=1e-6)
    found.loss.backward()
    assert largest_difference(gradients(model), expected) < 1e-6
    # every weight takes part, so data parallelism has nothing to complain of; a key's bias moves no softmax
    skipped = ("key.bias", "type_embeddings.weight", "position_embeddings.weight")
    assert all(value.abs().max() > 1e-9 for name, value in expected.items() if not name.endswith(skipped))


def test_parts_sum_to_the_step():
    model, some = made(), examples()
    whole = model(**batch(some))
    whole.loss.backward()
    expected = gradients(model)
    for size in (1, 3):
        parts = [batch(some[start : start + size]) for start in range(0, 4, size)]
        counts = sum(model.count_items(part) for part in parts)
        assert counts.tolist() == [6, 3, 5]
        outputs = [model(**part, num_items_in_batch=counts) for part in parts]
        sum(output.loss for output in outputs).backward()
        assert largest_difference(gradients(model), expected) < 1e-6
        assert sum(one.dea_loss.item() for one in outputs) == pytest.approx(whole.dea_loss.item(), abs=1e-6)
    torch.testing.assert_close(model(**model.first_rows(batch(some), 2)).loss, model(**batch(some[:2])).loss)


@pytest.mark.parametrize("text_layers", [0, 2])
def test_without_entities_it_is_bert(text_layers, tmp_path):
    torch.manual_seed(0)
    bert = BertForPreTraining(BertConfig(**BERTS | {"num_hidden_layers": 4, "hidden_act": "relu"})).eval()
    bert.save_pretrained(tmp_path)
    sizes = {"entity_size": 6, "num_entity_heads": 2, "num_text_layers": text_layers}
    model = ErnieThuForPreTraining.from_bert_pretrained(tmp_path, **sizes)
    weights = renamed(bert.state_dict(), text_layers)
    assert (
        len(weights) == len(bert.state_dict()) - 2
    )  # the decoder is the table of words, its bias comes twice
    assert weights.keys() <= model.state_dict().keys()
    ids, mask = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    types = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    expected = bert(ids, mask, types)
    for entities in (None, torch.full_like(ids, -1)):
        found = model(ids, mask, types, entities=entities, entity_vectors=vectors())
        torch.testing.assert_close(found.logits[mask == 1], expected.prediction_logits[mask == 1])
        torch.testing.assert_close(found.seq_relationship_logits, expected.seq_relationship_logits)


def test_candidates_may_come_in_any_order():
    model, some = made(), batch(examples())
    order = torch.tensor([3, 0, 4, 1, 2])
    place = torch.argsort(order)
    other = some | {"entity_vectors": some["entity_vectors"][order]}
    other["entities"] = torch.where(some["entities"] < 0, -1, place[some["entities"].clamp(min=0)])
    other["entity_labels"] = torch.where(
        some["entity_labels"] < 0, -100, place[some["entity_labels"].clamp(min=0)]
    )
    one, two = model(**some), model(**other)
    torch.testing.assert_close(two.entity_logits, one.entity_logits[:, order])
    torch.testing.assert_close(two.loss, one.loss)
    assert one.entity_logits.shape == (5, 5)


def test_entity_vectors_are_frozen():
    model, some = made(), batch(examples())
    some["entity_vectors"].requires_grad_()
    loss = model(**some).loss
    assert torch.autograd.grad(loss, some["entity_vectors"], allow_unused=True) == (None,)
    assert not [name for name, one in model.named_parameters() if one.shape == (5, 6)]


def test_entities_change_the_text():
    """An entity reaches all tokens of its row, and no other row."""
    model, some = made(), batch(examples())
    some = {name: value for name, value in some.items() if "label" not in name}
    before = model(**some).logits
    some["entity_vectors"] = some["entity_vectors"].clone()
    some["entity_vectors"][0] += 1
    named = (some["entities"] == 0).any(1)
    moved = (model(**some).logits - before).abs().amax((1, 2)) > 1e-6
    assert moved.tolist() == named.tolist()
    assert named.any()
    assert not named.all()


def test_losses_without_labels_are_nothing():
    model, some = made().train(), batch(examples()[2:3])
    for missing in (("entity_labels", "entities", "entity_vectors"), ("labels",), ("next_sentence_label",)):
        found = model(**{name: value for name, value in some.items() if name not in missing})
        assert found.loss.isfinite()
        found.loss.backward()
        assert all(grad.isfinite().all() for grad in gradients(model).values())
    assert model(**some).dea_loss.item() == 0
    assert model(**batch(examples()[3:])).loss.item() == 0


def test_round_trip(tmp_path):
    model, some = made(torch.float32), batch(examples())
    model.save_pretrained(tmp_path)
    loaded, report = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is ErnieThuForPreTraining
    assert not any(report.values())
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(loaded(**some).loss, model(**some).loss)
    body = AutoModel.from_pretrained(tmp_path)
    assert type(body) is ErnieThuModel
    inputs = {name: some[name] for name in ("input_ids", "attention_mask", "entities", "entity_vectors")}
    torch.testing.assert_close(body(**inputs).pooler_output, model.ernie(**inputs).pooler_output)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["architectures"] == ["ErnieThuForPreTraining"]
    assert saved["auto_map"] == AUTO_MAP["ernie-thu"]
    assert type(AutoConfig.from_pretrained(tmp_path)) is ErnieThuConfig
    assert (tmp_path / "layers_ernie_thu.py").is_file()
    model.ernie.text_encoder.save_pretrained(tmp_path / "text")
    assert AutoModel.from_pretrained(tmp_path / "text").config.num_hidden_layers == 1


def test_new_weights_and_resizing(tmp_path):
    model = made(torch.float32, initializer_range=0.02)
    assert model.ernie.layers[1].entity_attention.query.weight.std().item() == pytest.approx(0.02, rel=0.4)
    assert (model.token_bias == 0).all()
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    torch.testing.assert_close(model(ids).logits[..., :VOCAB], before)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == VOCAB + 3
    new = torch.tensor([[VOCAB + 2]])
    assert loaded(new, labels=new).loss.isfinite()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_text_layers": 4}, "must leave a layer of num_hidden_layers=4 for the entities, found 4"),
        ({"num_entity_heads": 4}, "entity_size must be a multiple of num_entity_heads, found 6 and 4"),
        ({"num_attention_heads": 3}, "hidden_size must be a multiple of num_attention_heads, found 16 and 3"),
    ],
)
def test_bad_configs(changes, words):
    with pytest.raises(Exception, match=words):
        ErnieThuConfig(**SIZES | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input_ids": None}, "needs input_ids"),
        ({"input_ids": torch.full((4, 11), VOCAB)}, "input_ids must lie in 0..39"),
        ({"input_ids": torch.ones(4, 25).long()}, "has 24 positions, found rows of 25"),
        (
            {"entities": torch.ones(4, 3).long()},
            "entities must be rows of entity_vectors or -1, like input_ids",
        ),
        (
            {"entities": torch.full((4, 11), 5)},
            "one of the 5 rows of entity_vectors, or be -1 for none; found torch.int64 5..5. Give",
        ),
        ({"entities": torch.full((4, 11), 1)}, "entities must be -1 at padding"),
        ({"entity_vectors": None}, "one of the 0 rows of entity_vectors"),
        ({"entity_vectors": torch.ones(5, 7)}, "the vectors of the batch's entities"),
        ({"entity_vectors": torch.full((5, 6), torch.nan)}, "entity_vectors must be finite"),
        (
            {"labels": torch.full((4, 11), VOCAB)},
            r"labels must be whole numbers in 0..39.* found torch.int64 \[40\]",
        ),
        (
            {"next_sentence_label": torch.tensor([0, 1, 2, 0])},
            "next_sentence_label must be whole numbers in 0..1",
        ),
        ({"entity_labels": torch.full((4, 11), 5)}, "entity_labels must be whole numbers in 0..4"),
        ({"token_type_ids": torch.full((4, 11), 2)}, "token_type_ids must lie in 0..1"),
        (
            {"labels": None, "next_sentence_label": None, "entity_labels": None},
            "training needs some of labels, next_sentence_label and entity_labels; found none",
        ),
    ],
)
def test_bad_batches(changes, words):
    with pytest.raises(ValueError, match=words):
        made(torch.float32).train()(**batch(examples()) | changes)


@pytest.mark.slow
def test_a_checkpoint_brings_its_own_code(tmp_path):
    """In a process that has no heirloom."""
    model, some = made(torch.float32), batch(examples())
    model.save_pretrained(tmp_path / "model")
    torch.save({"batch": some, "loss": model(**some).loss.detach()}, tmp_path / "expected")
    code = (
        "import sys, torch\n"
        "sys.modules['heirloom'] = None\n"
        "from transformers import AutoModelForPreTraining\n"
        f"model = AutoModelForPreTraining.from_pretrained({str(tmp_path / 'model')!r}, trust_remote_code=True)\n"
        f"expected = torch.load({str(tmp_path / 'expected')!r})\n"
        "torch.testing.assert_close(model(**expected['batch']).loss, expected['loss'])\n"
        "assert type(model).__module__.startswith('transformers_modules')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_registration_while_a_stock_config_is_being_imported(tmp_path):
    """Its import loads the Auto classes, these load ours, and ours must not need it yet."""
    code = "import heirloom\nfrom transformers import BertConfig, AutoModelForPreTraining"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
