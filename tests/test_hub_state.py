"""What a checkpoint that goes to the Hub says of a training's best one: no folder, and still enough to resume."""

import json

import pytest
from hub_server import Hub, point_hub_at
from transformers import TrainerState, TrainingArguments

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM
from heirloom.training.shareable_arguments import ShareableState
from heirloom.training.trainer import PretrainingTrainer

ADA = "hf_ada"
LSTM = {"vocab_size": 13, "embedding_size": 5, "cell_size": 7, "num_hidden_layers": 2}


@pytest.fixture
def hub(tmp_path):
    with Hub({ADA: "ada"}) as server, pytest.MonkeyPatch.context() as patch:
        point_hub_at(server.endpoint, ADA, str(tmp_path / "cache"), patch)
        yield server


def test_the_state_of_a_training_names_no_folder_and_still_finds_the_best(hub, tmp_path):
    folder = tmp_path / "secret" / "run"

    def trainer(steps):
        arguments = TrainingArguments(
            output_dir=str(folder),
            push_to_hub=True,
            hub_model_id="ada/state",
            hub_token=ADA,
            hub_strategy="checkpoint",
            hub_always_push=True,
            max_steps=steps,
            save_steps=1,
            eval_strategy="steps",
            eval_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="score",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2
        made = PretrainingTrainer(
            LstmLMForCausalLM(LstmLMConfig(**LSTM)), arguments, train_dataset=rows, eval_dataset=rows
        )
        made.evaluate = lambda *_, **__: {"eval_score": {1: 1.0, 2: 3.0}.get(made.state.global_step, 2.0)}
        return made

    first = trainer(3)
    first.train()
    first.push_to_hub()  # leaves the checkpoint as it is listed
    assert first.state.best_model_checkpoint == str(folder / "checkpoint-2")
    pushed = [file for commit in hub.repositories["ada/state"].history() for file in commit.files.items()]
    states = [json.loads(file.data) for name, file in pushed if name == "last-checkpoint/trainer_state.json"]
    assert {state["best_global_step"] for state in states} == {1, 2}
    for name, file in pushed:
        assert str(tmp_path).encode() not in file.data, name
    again = trainer(4)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    assert (again.state.best_metric, again.state.best_model_checkpoint) == (3.0, str(folder / "checkpoint-2"))


def test_a_checkpoint_that_is_listed_stays_and_the_best_is_found_before_the_first_step(tmp_path):
    best = tmp_path / "checkpoint-2"
    best.mkdir()
    state = TrainerState(global_step=2, best_global_step=2, best_model_checkpoint=str(best))
    state.save_to_json(str(best / "trainer_state.json"))
    (best / "files.json").write_text("{}")
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    ShareableState().on_push_begin(arguments, state, None)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    state.best_model_checkpoint = None
    ShareableState().on_train_begin(arguments, state, None)
    assert state.best_model_checkpoint == str(best)
