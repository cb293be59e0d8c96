"""heirloom quickstart: its corpus, its task, and the folder it leaves; on a small part of the text."""

import pytest
from huggingface_hub import ModelCard
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoTokenizer

from heirloom.sharing import quickstart as story
from heirloom.training import python_docs
from heirloom.training.trainer import read_log


def test_the_corpus_is_python_s_own():
    texts = python_docs.language_reference()
    assert sum(len(text.split()) for text in texts) > 50_000
    assert len(python_docs.docstrings()["json"]) > 5
    assert python_docs.paragraphs("a\nb\n\n\n c ") == ["a b", "c"]


def test_the_task_s_split_is_decided_by_the_texts_alone():
    names, train, held_out = python_docs.module_task()
    assert len(names) == 20
    assert names == sorted(names)
    assert not {text for text, _ in train} & {text for text, _ in held_out}
    assert 0.15 < len(held_out) / (len(train) + len(held_out)) < 0.25
    assert all(python_docs.is_held_out(text) for text, _ in held_out)
    assert {label for _, label in train} == set(range(20))


def test_the_run_folder_is_whole(tmp_path, monkeypatch, capsys):
    names, train, held_out = python_docs.module_task()
    small = {name: [text for text, label in train if names[label] == name][:8] for name in names}
    monkeypatch.setattr(story, "language_reference", lambda: python_docs.language_reference()[:60])
    monkeypatch.setattr(
        story, "docstrings", lambda: {**small, "held out": [text for text, _ in held_out[:20]]}
    )
    monkeypatch.setattr(story, "module_task", lambda: (names, train[:60], held_out[:20]))
    seen = []
    real = story.train_bilm
    monkeypatch.setattr(
        story,
        "train_bilm",
        lambda *tables, **sizes: seen.extend(tables[:2]) or real(*tables, **sizes),
    )
    folder = tmp_path / "run"
    results = story.quickstart(folder, pretrain_epochs=1, finetune_epochs=1)
    assert set(results) == {"from scratch", "from the biLM", "perplexity"}

    sentences = {" ".join(row) for table in seen for row in table["words"]}
    tokenize = story.ElmoTokenizer().tokenize
    unseen = {" ".join(tokenize(python_docs.paragraphs(text)[0])[:32]) for text, _ in held_out[:20]}
    known = {" ".join(tokenize(python_docs.paragraphs(text)[0])[:32]) for text in small[names[0]]}
    assert known <= sentences
    assert not unseen & sentences  # held-out docstrings are kept out of pre-training too

    found = {path.name for path in folder.iterdir()}
    assert found >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "vocab.txt",
        "curves.png",
        "layer_weights.png",
    }
    assert found >= {"accuracy.png", "log.jsonl", "classifier", "classifier_from_scratch"}
    assert any("eval_perplexity" in record for record in read_log(folder))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(["Return the value."], return_tensors="pt")
    assert AutoModel.from_pretrained(folder)(**batch).last_hidden_state.shape == (1, 4, 128)
    assert AutoModelForPreTraining.from_pretrained(folder)(**batch).forward_logits.shape == (
        1,
        4,
        len(tokenizer),
    )
    classifier = AutoModelForSequenceClassification.from_pretrained(folder / "classifier")
    assert classifier(**batch).logits.shape == (1, 20)
    assert classifier.config.id2label[0] == names[0]

    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert "curves.png" in card.text
    assert str(tmp_path) not in card.text
    printed = capsys.readouterr().out
    assert "from scratch" in printed
    assert "heirloom embed" in printed

    with pytest.raises(FileExistsError, match="is not empty. Name another folder"):
        story.quickstart(folder)


@pytest.mark.slow
def test_the_real_one_beats_scratch(tmp_path):
    results = story.quickstart(tmp_path / "run")
    assert results["from the biLM"] > results["from scratch"]
