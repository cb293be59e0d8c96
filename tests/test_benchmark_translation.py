"""benchmarks/translation.py with tiny language models: each row trains what it says, and nothing is done twice."""

import importlib.util
import json
from pathlib import Path

import pytest

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.training.tokenizers import train_tokenizer

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "translation.py"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """The script with tiny sizes, and the options that all calls share."""
    spec = importlib.util.spec_from_file_location("translation_benchmark", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.EPOCHS, script.UPPER_SIZE, script.PARALLEL_LM_EPOCHS = {8: 1, 12: 1}, 6, 1
    lines = {
        "en": ["the", "cat", "sat", "on", "a", "mat"],
        "de": ["die", "Katze", "lag", "auf", "der", "Matte"],
    }
    for language, words in lines.items():
        for name, count in (("train", 16), ("val", 4), ("mono", 12)):
            text = "\n".join(" ".join(words[n % 3 : 3 + n % 4]) for n in range(count))
            (tmp_path / f"{name}.{language}").write_text(text + "\n")
        tokenizer, _ = train_tokenizer([" ".join(words)] * 4, "word", 20)
        tokenizer.save_pretrained(tmp_path / language)
        sizes = {"embedding_size": 6, "cell_size": 6, "num_hidden_layers": 1}
        LstmLMForCausalLM(LstmLMConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(
            tmp_path / language
        )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "per_device_train_batch_size: 4\nuse_cpu: true\neval_strategy: epoch\nsave_strategy: epoch\nlogging_steps: 1\n"
        "load_best_model_at_end: true\nlearning_rate: 0.01\n"
    )
    script.RECIPE = str(recipe)
    models = [str(tmp_path / language) for language in lines]
    return script, ["--language-models", *models, "--data", str(tmp_path)], tmp_path


def results(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_rows_train_what_they_say(bench, monkeypatch, capsys):
    script, options, folder = bench
    made = []
    plain = script.train_seq2seq

    def spy(arguments, training_arguments):
        made.append(arguments)
        return plain(arguments, training_arguments)

    monkeypatch.setattr(script, "train_seq2seq", spy)
    rows = ["full", "no pre-training, no LM loss", "only the decoder", "LMs of the parallel text"]
    script.main([str(folder / "out"), *options, "--pairs", "8", "--seeds", "1", "--rows", *rows])
    random = made[1]
    assert [one.train_pairs for one in made] == [8] * 4
    assert [one.from_scratch for one in made] == [False, True, False, False]
    assert [bool(one.source_monolingual) for one in made] == [True, False, True, True]
    assert random.forgetting == "none"
    found = results(folder / "out")
    assert len(found) == 4
    start = {name.split("_")[1]: (one["source_start"], one["target_start"]) for name, one in found.items()}
    words = script.AutoTokenizer.from_pretrained(folder / "en")
    assert start["no-pre-training-no-LM-loss"] == pytest.approx([len(words), len(words)], rel=0.2)
    assert start["only-the-decoder"][1] == pytest.approx(start["full"][1])  # the same language model
    assert start["only-the-decoder"][0] != pytest.approx(start["full"][0])
    assert start["LMs-of-the-parallel-text"] != pytest.approx(start["full"])
    assert all(one["updates"] == 2 for one in found.values())
    assert not list((folder / "out").glob("*.run"))
    printed = capsys.readouterr().out
    assert "| 8 pairs, 1 epochs (seeds) | BLEU | chrF2 | dev perplexity |" in printed
    assert "| full (1) |" in printed

    script.main([str(folder / "out"), *options, "--pairs", "8", "--seeds", "1", "--rows", "full"])
    assert len(made) == 4  # has its result already
    (folder / "out" / "12_full_1.run").mkdir()
    script.main([str(folder / "out"), *options, "--pairs", "12", "--seeds", "1", "--rows", "full"])
    assert len(made) == 4
    assert "12_full_1.run exists without a result: remove it to run that again" in capsys.readouterr().out
