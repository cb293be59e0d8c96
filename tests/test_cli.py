"""The shell face: help screens, exit codes, messages; and plots and cards that verbs leave."""

import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.sharing.cards import CardFacts, render_card
from heirloom.training.plots import plot_comparison, plot_curves, plot_layer_weights

VERBS = [
    "quickstart",
    "convert",
    "convert elmo",
    "convert efml",
    "convert elmo-to-bilm",
    "convert seq2seq",
    "convert joint-to-stock",
    "convert openai-gpt",
    "convert export",
    "embed",
    "score",
    "translate",
    "evaluate",
    "train-tokenizer",
    "train-seq2seq",
    "pretrain",
    "finetune",
]
VERBS += ["objectives", "objectives show", "recipes", "env", "push", "card", "plot"]


@pytest.mark.parametrize("verb", VERBS)
def test_help_fits_a_screen_and_shows_an_example(verb):
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, [*verb.split(), "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) <= 40
    if verb != "convert":
        assert f"Example: heirloom {verb}" in result.output


def test_help_needs_no_torch():
    code = "import sys; from heirloom.cli.main import app; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_failures_are_one_message_and_wrong_usage_is_told_apart(tmp_path):
    def run(*words):
        command = [sys.executable, "-m", "heirloom.cli.main", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    failed = run("finetune", "no-such-recipe")
    assert failed.returncode == 1
    assert "neither a YAML file nor a recipe" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert run("embed").returncode == 2
    assert run("no-such-verb").returncode == 2
    version = run("--version")
    assert version.stdout.startswith("heirloom ")


def test_recipes_and_env_say_what_there_is():
    recipes = CliRunner().invoke(app, ["recipes"])
    assert recipes.exit_code == 0
    assert "elmo_english" in recipes.output
    assert "tagging" in recipes.output
    environment = CliRunner().invoke(app, ["env"])
    assert "transformers" in environment.output
    assert "CPU threads" in environment.output


def test_plots_draw_what_they_are_given(tmp_path):
    records = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0, "eval_loss": 2.5}]
    axes = plot_curves(records, "run").axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == {
        "training": [3.0, 2.0],
        "held out": [2.5],
    }
    with pytest.raises(ValueError, match="the log has none of"):
        plot_curves([{"step": 1}])
    bars = plot_layer_weights([0.2, 0.3, 0.5]).axes[0].patches
    assert [bar.get_height() for bar in bars] == [0.2, 0.3, 0.5]
    figure = plot_comparison({"a": [(1, 0.5), (2, 0.6)]}, "title", "accuracy")
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_cards_are_valid_and_complete():
    facts = CardFacts(
        "x", "AutoModel", "A model.", "Text.", {"loss": "1.0"}, {"seed": "0"}, pictures=["curves.png"]
    )
    card = ModelCard(render_card(facts))
    assert card.data.license == "unknown"
    assert card.data.tags == ["elmo", "heirloom"]
    for piece in ("| loss | 1.0 |", "| seed | 0 |", "![curves](curves.png)", "AutoModel.from_pretrained"):
        assert piece in card.content
