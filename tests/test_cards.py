"""Model cards: of runs, byte for byte; written again; drawn again; and those of the converted originals."""

import json
import os
import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import save_file
from typer.testing import CliRunner

from heirloom import ElmoConfig, ElmoModel, ElmoTokenizer, LstmLMConfig
from heirloom.cli.main import app
from heirloom.sharing.cards import CardFacts, render_card, update_card, write_card
from heirloom.sharing.citations import bibtex, citations_of
from heirloom.sharing.push_checks import card_warnings
from heirloom.sharing.run_facts import facts_of_run, own_options
from heirloom.sharing.run_plots import draw_run, run_records
from heirloom.sharing.runs import JointFacts, Seq2SeqFacts
from heirloom.sharing.stock_runs import StockFacts
from heirloom.training.arguments import FinetuneArguments
from heirloom.training.objectives import OBJECTIVES

CARDS = Path(__file__).resolve().parents[1] / "model_cards"
GOLDEN = Path(__file__).parent / "golden"
ORIGINALS = {file.stem: file for file in CARDS.glob("elmo-*.md")}
TRAINING = {
    "parameters": "12,345",
    "learning_rate": "0.001",
    "seed": "7",
    "training time": "9 s on CPU, 1 threads",
}
TRAINING |= {"versions": "heirloom 0.0, Python 3.11.0, transformers 5.17.0, torch 2.6.0"}


def run(kind=CardFacts, **changes):
    facts = {
        "name": "run",
        "auto_class": "AutoModel",
        "summary": "An ELMo biLM pre-trained with heirloom.",
        "data": "Trained on `a.txt`; evaluated on a held-out part.",
        "results": {"held-out perplexity, whole vocabulary": "83.12"},
        "scores": {"perplexity": 83.12345678, "never": float("nan")},
        "training": TRAINING,
        "pictures": ["curves.png"],
        "dataset": "held-out part of the training data",
        "task": "feature-extraction",
    }
    return kind(**facts | changes)


FAMILIES = {
    "elmo": (run(citations=["jean-etal-2015-using"]), "elmo.md"),
    "lstm-lm": (run(auto_class="AutoModelForCausalLM", task="text-generation", language="en"), "lstm-lm.md"),
    "lstm-seq2seq": (
        run(
            Seq2SeqFacts,
            auto_class="AutoModelForSeq2SeqLM",
            task="translation",
            results={"BLEU": "31.4", "chrF2": "55"},
            scores={"bleu": 31.4, "chrf": 55.0},
            dataset="dev.tsv",
            base_model="ada/en-de",
            citations=["kirkpatrick-etal-2017-overcoming", "varis-bojar-2019-unsupervised"],
            separate=True,
        ),
        "lstm-seq2seq.md",
    ),
    "joint-loss": (
        run(
            JointFacts,
            auto_class="AutoModelForTokenClassification",
            task="token-classification",
            results={"entity F1 (seqeval)": "0.9", "a|b": "1\n2"},
            scores={"entity_f1": 0.9},
            datasets=["ada/names"],
            tags=["named-entities"],
            license="mit",
            form="tagging",
        ),
        "joint-loss.md",
    ),
    "stock": (
        run(
            StockFacts,
            auto_class="AutoModelForMaskedLM",
            task="fill-mask",
            scores={},
            family="bert",
            objective="mlm",
            paper="Devlin et al. 2019",
            about="Hidden tokens are told.",
        ),
        "stock.md",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_of_a_run_is_as_reviewed(family):
    """After a wanted change: UPDATE_GOLDEN=1 pytest tests/test_cards.py, and read the diff."""
    facts, template = FAMILIES[family]
    text = render_card(facts, template)
    golden = GOLDEN / f"card_{family}.md"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == facts.task
    shown = {result.metric_name.replace(" ", "_"): result.metric_value for result in data.eval_results or []}
    assert shown == pytest.approx({k: v for k, v in facts.scores.items() if v == v}, rel=1e-5)
    for key in facts.citations:
        assert bibtex(key) in text
    assert ("## Licence" in text) == (facts.license == "unknown")


def test_a_card_is_written_again_until_somebody_edits_it(tmp_path):
    text = write_card(tmp_path, run(pictures=[]))
    card = tmp_path / "README.md"
    assert update_card(tmp_path) == text == card.read_text()

    (tmp_path / "curves.png").touch()
    changed = update_card(tmp_path, {"license": "mit", "language": "de"})
    assert "![curves](curves.png)" in changed
    assert ModelCard(changed).data.license == "mit"
    assert ModelCard(changed).data.language == "de"
    assert update_card(tmp_path) == changed  # recorded

    card.write_text(changed + "\nBy hand.\n")
    with pytest.raises(FileExistsError, match="has been edited since heirloom wrote it.*--force"):
        update_card(tmp_path, {"license": "other"})
    assert card.read_text().endswith("By hand.\n")
    assert json.loads((tmp_path / "card.json").read_text())["facts"]["license"] == "mit"
    assert update_card(tmp_path, force=True) == changed == card.read_text()
    card.unlink()
    (tmp_path / "curves.png").unlink()
    assert "curves.png" not in update_card(tmp_path)


def entry_of(text):
    entries = parse_eval_result_entries(yaml.safe_load(text))
    assert len(entries) == 1
    return entries[0]


def test_the_file_of_results_is_as_reviewed_and_valid(tmp_path):
    facts = run(dataset="ada/names", scores={"loss": 0.25, "accuracy": 0.98, "entity_f1": 0.87654321})
    write_card(tmp_path, facts)
    text = (tmp_path / ".eval_results" / "heirloom.yaml").read_text(encoding="utf-8")
    golden = GOLDEN / "eval_results.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, encoding="utf-8")
    assert text == golden.read_text(encoding="utf-8")
    entry = entry_of(text)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("ada/names", "default", 0.876543)
    assert entry.notes == "entity f1"
    update_card(tmp_path, {"dataset_task": "people"})
    assert entry_of((tmp_path / ".eval_results" / "heirloom.yaml").read_text()).task_id == "people"


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "held-out part of the training data"},
        {"dataset": "names"},
        {"dataset": "data/dev.tsv"},
        {"dataset": "a/b/c"},
        {"scores": {"loss": 1.0}},
        {"scores": {"accuracy": float("nan")}},
    ],
    ids=str,
)
def test_no_file_of_results_where_no_benchmark_is_named(changes, tmp_path):
    known = {"dataset": "ada/names", "scores": {"accuracy": 0.5}}
    write_card(tmp_path, run(**known))
    assert (tmp_path / ".eval_results" / "heirloom.yaml").is_file()
    write_card(tmp_path, run(**known | changes))
    assert not (tmp_path / ".eval_results" / "heirloom.yaml").exists()
    assert "results" not in json.loads((tmp_path / "card.json").read_text())


def test_a_file_of_results_that_somebody_edited_stays(tmp_path):
    write_card(tmp_path, run(pictures=[], dataset="ada/names", scores={"accuracy": 0.5}))
    file = tmp_path / ".eval_results" / "heirloom.yaml"
    card = (tmp_path / "README.md").read_text()
    (file.parent / "mine.yaml").write_text("mine")
    file.write_text("edited")
    with pytest.raises(
        FileExistsError, match=r"heirloom.yaml has been edited since heirloom wrote it.*--force"
    ):
        update_card(tmp_path, {"license": "mit"})
    assert (file.read_text(), (tmp_path / "README.md").read_text()) == ("edited", card)
    done = CliRunner().invoke(app, ["card", str(tmp_path), "--license", "mit", "--force"])
    assert done.stdout == f"written: {tmp_path / 'README.md'}\nwritten: {file}\n"
    assert entry_of(file.read_text()).value == 0.5
    assert (file.parent / "mine.yaml").read_text() == "mine"


def test_a_translators_card_names_its_tokenizers_as_folders_of_a_repository():
    facts, template = FAMILIES["lstm-seq2seq"]
    assert render_card(facts, template).count('("run", subfolder="') == 2


def test_records_that_are_older_or_broken(tmp_path):
    text = write_card(tmp_path, run(scores={}, task="", pictures=[]))
    file = tmp_path / "card.json"
    record = json.loads(file.read_text())
    for name in ("scores", "task", "datasets", "citations"):
        del record["facts"][name]
    file.write_text(json.dumps(record))
    assert update_card(tmp_path) == text

    for part, broken, message in (
        ("facts", record["facts"] | {"training": 3}, "do not fit its template elmo.md"),
        ("facts", {"pictures": []}, "do not fit its template elmo.md"),
        ("template", "../secret.md", "expected the name of a template in model_cards/"),
    ):
        file.write_text(json.dumps(record | {part: broken}))
        with pytest.raises(ValueError, match=message):
            update_card(tmp_path)
    for content in ("{", "[]", '{"template": "elmo.md"}'):
        file.write_text(content)
        with pytest.raises(ValueError, match="must be JSON with template, rendered and facts"):
            update_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    file.unlink()
    with pytest.raises(FileNotFoundError, match="which a training verb of heirloom leaves"):
        update_card(tmp_path)


def test_the_verbs_card_and_plot(tmp_path):
    write_card(tmp_path, run(pictures=[]))
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo')
    shell = CliRunner(env={"COLUMNS": "100"})
    for verb in ("card", "plot"):
        shown = shell.invoke(app, [verb, "--help"])
        assert f"Example: heirloom {verb}" in shown.output
        assert len(shown.output.splitlines()) <= 40
    drawn = shell.invoke(app, ["plot", str(tmp_path)])
    assert drawn.output == f"drawn: {tmp_path / 'curves.png'}\n"
    assert (tmp_path / "curves.png").stat().st_size > 1000
    done = shell.invoke(app, ["card", str(tmp_path), "--name", "ada/small"])
    assert done.exit_code == 0
    assert "warning: the license is unknown" in done.stderr
    assert "warning: the language is not named" in done.stderr
    assert 'from_pretrained("ada/small")' in (tmp_path / "README.md").read_text()
    done = shell.invoke(app, ["card", str(tmp_path), "--license", "mit", "--language", "en"])
    assert done.stderr == ""
    assert "# ada/small\n" in (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text("mine")
    refused = shell.invoke(app, ["card", str(tmp_path)])
    assert refused.exit_code == 1
    assert refused.stderr.startswith("heirloom: ")
    assert "has been edited" in refused.stderr
    assert shell.invoke(app, ["card", str(tmp_path), "--force"]).exit_code == 0


def test_the_whole_help_fits_a_small_screen():
    shown = CliRunner(env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).invoke(app, ["--help"])
    assert len(shown.output.splitlines()) <= 24
    assert "--version" in shown.output
    assert "--help" in shown.output


def test_pictures_of_whatever_a_run_left(tmp_path):
    scored = [{"step": s, "epoch": s / 2, "eval_loss": 1.0, "eval_bleu": 10.0 * s} for s in (1, 2)]
    for step, history in ((9, scored[:1]), (10, [{"step": 1, "loss": 2.0}, *scored])):
        folder = tmp_path / "translation" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": history}))
    assert len(run_records(tmp_path / "translation")) == 3
    names = [file.name for file in draw_run(tmp_path / "translation", "svg")]
    assert names == ["curves.svg", "scores.svg"]
    assert "<svg" in (tmp_path / "translation" / "scores.svg").read_text()

    head = tmp_path / "head"
    head.mkdir()
    (head / "log.jsonl").write_text('{"step": 1, "task_loss": 2.0, "loss": 9.0}\n')
    save_file({"mix.scalar_parameters": torch.tensor([5.0, 0.0, 0.0])}, head / "model.safetensors")
    (head / "config.json").write_text('{"mix_layers": [1, 2]}')
    records = [{"step": step, "forgetting_news_lm_loss": 3.0 + step} for step in (0, 1)]
    (head / "forgetting.json").write_text(json.dumps({"records": records}))
    names = [file.name for file in draw_run(head)]
    assert names == ["curves.png", "layer_weights.png", "forgetting.png"]
    assert all((head / name).stat().st_size > 1000 for name in names)
    from heirloom.sharing.run_plots import _layer_shares

    assert _layer_shares(head) == [0, 0.5, 0.5]


def test_folders_without_numbers(tmp_path):
    with pytest.raises(FileNotFoundError, match="found no folder"):
        draw_run(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="expected log.jsonl or trainer_state.json"):
        draw_run(tmp_path)
    (tmp_path / "log.jsonl").write_text("nonsense\n")
    with pytest.raises(ValueError, match="must hold one JSON record a line"):
        draw_run(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(ValueError, match="the log has none of"):
        draw_run(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "trainer_state.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        draw_run(tmp_path)


def test_what_a_run_tells_of_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").mkdir()
    file = tmp_path / "secret" / "train.txt"
    file.touch()
    (tmp_path / "bilm").mkdir()
    config = SimpleNamespace(text_config=ElmoConfig(), softmax="full")
    trainer = SimpleNamespace(model=SimpleNamespace(config=config, num_parameters=lambda: 1234))
    arguments = FinetuneArguments(
        train_file=[str(file)],
        model="ada/bilm",
        kl_weight=0.5,
        layer_lr_decay=0.9,
        task="token-classification",
    )
    facts = facts_of_run(trainer, arguments, {"eval_loss": 0.12345, "other": 1.0}, {"eval_loss": "loss"})
    assert facts["results"] == {"loss": "0.1235"}
    assert facts["scores"] == {"loss": 0.12345}
    assert facts["dataset"] == "held-out part of the training data"
    assert facts["base_model"] == "ada/bilm"
    assert facts["datasets"] == []
    methods = ["peters-etal-2018-deep", "howard-ruder-2018-universal", "li-hoiem-2016-learning"]
    assert facts["citations"] == methods
    told = own_options(trainer, arguments)
    assert told["parameters"] == "1,234"
    assert told["train_file"] == "train.txt"
    assert told["kl_weight"] == "0.5"
    assert "head_dropout" not in told

    arguments = FinetuneArguments(train_file=["ada/names"], validation_file=[str(file)], model="bilm")
    facts = facts_of_run(trainer, arguments, {}, {})
    assert (facts["datasets"], facts["base_model"], facts["dataset"]) == (["ada/names"], "", "train.txt")
    assert str(tmp_path) not in f"{facts} {own_options(trainer, arguments)}"
    arguments = FinetuneArguments(train_file=["data/part-*.txt"])
    assert own_options(trainer, arguments)["train_file"] == "part-*.txt"


def test_citations_follow_the_methods():
    assert citations_of(LstmLMConfig(), {"forgetting": "none"}) == []
    assert citations_of(LstmLMConfig(softmax="adaptive"), {"forgetting": "l2sp"}) == [
        "grave-etal-2017-efficient",
        "li-etal-2018-explicit",
    ]
    assert citations_of(LstmLMConfig(), {"objective": "bart"}) == ["lewis-etal-2020-bart"]
    with pytest.raises(ValueError, match=r"expected one of .*peters-etal-2018-deep.* found 'nobody'"):
        bibtex("nobody")


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: one.name)
def test_an_objectives_card_cites_its_paper(objective):
    """The entry is that of the first author and the year which the objective names."""
    (key,) = citations_of(LstmLMConfig(), {"objective": objective.name})
    author, year = re.match(r"(?:after )?(\w+) et al. (\d{4})", objective.paper).groups()
    entry = bibtex(key)
    assert f'author = "{author}, ' in entry
    assert f'year = "{year}"' in entry


# The converted originals


def command_of(words: list[str]):
    """The verb that a command line names, and what is left for it."""
    command = typer.main.get_command(app)
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"heirloom has no verb {words[0]}"
        command = command.commands[words.pop(0)]
    return command, words


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_card_of_an_original(name):
    text = ORIGINALS[name].read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.tags[:2] == ["elmo", "heirloom"]
    assert card.data.pipeline_tag == "feature-extraction"
    gaps = [warning for warning in card_warnings(text, []) if "license is unknown" not in warning]
    assert gaps == []
    headings = re.findall(r"^## (.*)", text, re.M)
    assert headings == [
        "Convert", "Use", "Sizes", "Training data", "Published results", "Licence", "Limits", "Citation",
    ]  # fmt: skip
    for result in card.data.eval_results or []:
        assert result.source_url == "https://allennlp.org/elmo"
        assert f"| {result.metric_value:.2f} |" in text
    assert re.search(r"(was|were) (not )?measured by heirloom", text)
    entries = re.findall(r"```bibtex\n(.*?)\n```", text, re.S)
    assert entries
    assert all(entry == bibtex(re.match(r"@\w+\{([^,]+)", entry)[1]) for entry in entries)

    lines = re.findall(r"^heirloom (.*)", text, re.M)
    assert lines
    for line in lines + re.findall(r"`heirloom ([^`]+)`", text):
        command, rest = command_of(shlex.split(line))
        if rest:
            command.make_context(line, rest)  # knows the options and has what it needs
    assert any(shlex.split(line)[-1] == name for line in lines)


@pytest.mark.parametrize(
    "name", [name for name, file in ORIGINALS.items() if "| parameters" in file.read_text()]
)
def test_sizes_on_a_card_are_those_of_the_model(name):
    text = ORIGINALS[name].read_text(encoding="utf-8")
    rows = {
        key: int(value.replace(",", ""))
        for key, value in re.findall(r"^\| (.+?) \| ([\d,]+) \|$", text, re.M)
    }
    sizes = {re.search(r"`(\w+)`", key)[1]: value for key, value in rows.items() if "`" in key}
    sizes["num_highway_layers"] = rows["highway layers"]
    sizes["num_hidden_layers"] = rows["LSTM layers, in each direction"]
    config = ElmoConfig(**sizes)
    assert config.hidden_size == rows["size of a word's vector, each layer"]
    assert config.num_filters == rows["character filters"]
    with torch.device("meta"):
        model = ElmoModel(config)
    tables = {name: value.numel() for name, value in model.named_parameters() if "embeddings" in name}
    if config.word_embedding_size:
        count = rows["parameters besides the tables of characters and words"]
        assert model.num_parameters() - sum(tables.values()) == count
    else:
        assert config.char_embedding_size == 16  # the row of zeros that the card speaks of
        assert model.num_parameters() - config.char_embedding_size == rows["parameters in the file"]


def test_all_originals_have_a_card():
    names = ("small", "medium", "original", "original-5.5b", "pubmed", "portuguese", "for-many-langs")
    assert set(ORIGINALS) == {f"elmo-{name}" for name in names}


@pytest.mark.parametrize("name", ["elmo-small", "elmo-portuguese"])
def test_the_example_of_a_card_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ElmoModel(ElmoConfig(char_filters=[[1, 4]], projection_size=4, cell_size=8)).save_pretrained(name)
    ElmoTokenizer().save_pretrained(name)
    block = ORIGINALS[name].read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    names = {}
    exec(block, names)
    assert [layer.shape for layer in names["layers"]] == 3 * [torch.Size([1, len(names["words"]), 8])]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("google-bert/bert-base-uncased", "google-bert/bert-base-uncased"),
        ('{"model_type": "bert"}', ""),
        ("/a/b", ""),
    ],
)
def test_only_a_name_on_the_hub_is_a_base_model(model, told):
    trainer = SimpleNamespace(model=SimpleNamespace(config=SimpleNamespace(model_type="bert")))
    arguments = SimpleNamespace(model=model, train_file=["corpus.txt", "user/texts"], from_scratch=False)
    facts = facts_of_run(trainer, arguments, {}, {})
    assert facts["base_model"] == told
    assert facts["datasets"] == ["user/texts"]
