"""ELMo inside sentence-transformers, and the pipeline that fills a gap."""

import importlib.util
import json
import sys

import pytest
import torch
from transformers import pipeline

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.modeling_elmo import ElmoForPreTraining, ElmoModel
from heirloom.sharing.scoring import lexical_substitutes
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer

TEXTS = ["the cat sat .", "the black dog sat on the mat .", "on"]
WORDS = sorted({word for text in TEXTS for word in text.split()})
needs_sentence_transformers = pytest.mark.skipif(
    not importlib.util.find_spec("sentence_transformers"), reason="needs the extra sentence-transformers"
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "words.txt").write_text("\n".join(["<S>", "</S>", "<UNK>", *WORDS]) + "\n")
    tokenizer = ElmoTokenizer(vocab_file=str(folder / "words.txt"), max_characters_per_token=9)
    sizes = {
        "projection_size": 8,
        "cell_size": 12,
        "char_filters": [[1, 4], [2, 4]],
        "char_embedding_size": 4,
    }
    torch.manual_seed(0)
    model = ElmoForPreTraining(
        ElmoConfig(vocab_size=tokenizer.vocab_size, max_characters_per_token=9, **sizes)
    ).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@needs_sentence_transformers
def test_sentence_transformers(checkpoint, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    from heirloom.sharing.sentence_transformers import ElmoWords

    words = ElmoWords.load(str(checkpoint))
    model = SentenceTransformer(modules=[words, Pooling(words.get_embedding_dimension())], device="cpu")
    found = model.encode(TEXTS, convert_to_tensor=True, batch_size=2)
    body, tokenizer = ElmoModel.from_pretrained(checkpoint).eval(), ElmoTokenizer.from_pretrained(checkpoint)
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            layers = body(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        expected.append(torch.stack(layers).mean(0)[0].mean(0))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-6, rtol=0)
    assert model.encode("", convert_to_tensor=True).abs().sum() == 0
    assert words.get_embedding_dimension() == 16

    features = model.preprocess(TEXTS)
    model(features)["sentence_embedding"].sum().backward()
    assert words.mix.gamma.grad is not None, "the mix is trained"
    assert words.model.lstm.forward_layers[0].weight_hh.grad.abs().sum() > 0

    with torch.no_grad():
        words.mix.scalar_parameters.copy_(torch.tensor([0.0, 1.0, 2.0]))
    model.save(str(tmp_path / "saved"))
    again = SentenceTransformer(str(tmp_path / "saved"), trust_remote_code=True, device="cpu")
    torch.testing.assert_close(
        again.encode(TEXTS, convert_to_tensor=True), model.encode(TEXTS, convert_to_tensor=True)
    )
    assert not torch.equal(again.encode(TEXTS, convert_to_tensor=True), found)
    assert isinstance(ElmoModel.from_pretrained(tmp_path / "saved"), ElmoModel), (
        "it is an ELMo checkpoint too"
    )
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["model_type"] == "elmo"
    with_prompt = words.preprocess(["cat"], prompt="the ")["attention_mask"]
    assert with_prompt.sum() == 2


def test_without_sentence_transformers(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)  # as if it were not installed
    for name in [name for name in sys.modules if name.startswith("sentence_transformers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "heirloom.sharing.sentence_transformers", raising=False)
    with pytest.raises(
        ImportError, match=r"needs sentence-transformers .*heirloom-lm\[sentence-transformers\]"
    ):
        import heirloom.sharing.sentence_transformers  # noqa: F401


def test_filling_a_gap(checkpoint):
    fill = pipeline("lexical-substitution", model=str(checkpoint), device="cpu")
    model, tokenizer = fill.model, fill.tokenizer
    assert type(model) is ElmoForPreTraining
    found = fill("the ___ sat .", top_k=3)
    expected = lexical_substitutes(model, tokenizer, ["the", "cat", "sat", "."], 1, 3)
    assert [(row["token_str"], row["score"]) for row in found] == expected
    assert found[0]["sequence"] == f"the {expected[0][0]} sat ."
    rows = fill(["___ cat", "the ___"])
    assert [len(row) for row in rows] == [len(WORDS)] * 2
    for text in ("the cat", "___ ___", 3):
        with pytest.raises(ValueError, match=f"a text with one gap ___ is expected, found {text!r}"):
            fill(text)
