"""ELMo in little memory: activations computed again in training, words encoded in parts in evaluation."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError

from heirloom.modeling import layers_elmo
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoModel
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

SIZES = {"char_filters": [[1, 4], [3, 6]], "char_embedding_size": 4, "projection_size": 16, "cell_size": 64}
SENTENCES = [list("abcabcabcabc"), ["d", "", "longer"], ["internationalisation" * 3, "x"]]


def batch() -> dict:
    return dict(ElmoTokenizer()(SENTENCES, is_split_into_words=True, padding=True, return_tensors="pt"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the method's new name does not exist in older versions
def test_activations_computed_again_change_nothing_and_are_not_kept():
    torch.manual_seed(0)
    model, inputs = ElmoForPreTraining(ElmoConfig(**SIZES, vocab_size=20)).train(), batch()
    labels = torch.randint(3, 20, inputs["char_ids"].shape[:2]) * inputs["attention_mask"]

    def run():
        torch.manual_seed(1)  # of the dropout
        model.zero_grad()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        return loss, [weight.grad.clone() for weight in model.parameters()], sum(kept)

    loss, gradients, kept = run()
    model.gradient_checkpointing_enable()
    again, gradients_again, kept_again = run()
    assert torch.equal(loss, again)
    assert all(torch.equal(one, other) for one, other in zip(gradients, gradients_again, strict=True))
    assert kept_again < kept / 4


@pytest.mark.parametrize(
    "options", [{}, {"word_embedding_size": 3, "vocab_size": 50}], ids=["characters", "both"]
)
def test_words_encoded_in_parts_are_the_same(options, monkeypatch):
    torch.manual_seed(0)
    model, inputs = ElmoModel(ElmoConfig(**SIZES, **options)).eval(), batch()
    model.token_encoder.cached_words = 0
    if options:
        inputs["input_ids"] = (
            torch.arange(36).view(3, 12) * inputs["attention_mask"] + inputs["attention_mask"]
        )
    with torch.no_grad():
        whole = model(**inputs).last_hidden_state
        monkeypatch.setattr(layers_elmo, "PART", 2)
        sizes, encode = [], model.token_encoder._encode
        model.token_encoder._encode = lambda words: sizes.append(len(words)) or encode(words)
        parts = model(**inputs).last_hidden_state
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert max(sizes) == 2
    assert len(sizes) > 3


def test_dropout_falls_on_positions_and_not_on_distinct_words(monkeypatch):
    torch.manual_seed(0)
    model, rows, dropout = ElmoModel(ElmoConfig(**SIZES, dropout=0.3)).train(), [], layers_elmo.F.dropout
    inputs = ElmoTokenizer()([["the"] * 5], is_split_into_words=True, return_tensors="pt")

    def counted(x, *options):
        rows.append(len(x))
        return dropout(x, *options)

    monkeypatch.setattr(layers_elmo.F, "dropout", counted)
    model(**inputs)
    assert set(rows) == {7}  # five words and two marks, of three kinds


def test_the_precision_is_an_option_of_the_checkpoint(tmp_path):
    torch.manual_seed(0)
    ElmoModel(ElmoConfig(**SIZES)).save_pretrained(tmp_path)
    exact, half = (ElmoModel.from_pretrained(tmp_path, **more).eval() for more in ({}, {"precision": "bf16"}))
    inputs = batch()
    with torch.no_grad():
        layers = [
            torch.stack(model(**inputs, output_hidden_states=True).hidden_states) for model in (exact, half)
        ]
        exact.config.precision = "bf16"
        again = torch.stack(exact(**inputs, output_hidden_states=True).hidden_states)
    assert torch.equal(layers[0][0], layers[1][0])  # words' vectors are made in float32
    assert 1e-4 < (layers[0][1:] - layers[1][1:]).norm() / layers[0][1:].norm() < 0.02
    assert torch.equal(again, layers[1])
    words = r"'precision' expected one of \('fp32', 'bf16'\), got int8"
    with pytest.raises(StrictDataclassFieldValidationError, match=words):
        ElmoConfig(**SIZES, precision="int8")
