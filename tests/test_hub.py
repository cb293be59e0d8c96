"""Every model class through a Hub on loopback: pushed, and pulled with heirloom and without; and Transformers' own pushes."""

import json
import os
import pickle
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import transformers
from hub_server import Hub, point_hub_at
from reference.joint_loss_naive import HEADS, joint, language_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    ElectraConfig,
    PreTrainedTokenizerFast,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from heirloom.modeling.auto_map import ALSO, AUTO_MAP
from heirloom.modeling.configuration_electra_joint import ElectraJointConfig
from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_ernie_thu import ErnieThuConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_electra_joint import ElectraForJointPreTraining
from heirloom.modeling.modeling_elmo import (
    ElmoForPreTraining,
    ElmoForSequenceClassification,
    ElmoForTokenClassification,
    ElmoModel,
)
from heirloom.modeling.modeling_ernie_thu import ErnieThuForPreTraining, ErnieThuModel
from heirloom.modeling.modeling_infoword import InfoWordForPreTraining
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM, LstmLMModel
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration
from heirloom.modeling.modeling_multi_task import MultiTaskModel
from heirloom.modeling.modeling_sentence_pair import SentencePairForPreTraining
from heirloom.modeling.modeling_spanbert import SpanBertForPreTraining
from heirloom.sharing.pushing import plan_push, push
from heirloom.sharing.runs import run_pretraining
from heirloom.sharing.stock_runs import run_stock_pretraining
from heirloom.tokenization.tokenization_elmo import ElmoTokenizer
from heirloom.training.arguments import PretrainArguments
from heirloom.training.shareable_arguments import shareable_arguments
from heirloom.training.trainer import PretrainingTrainer

ADA, BEN = "hf_ada", "hf_ben"  # tokens
BERT = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24, "max_position_embeddings": 24}
ELMO = {"char_embedding_size": 4, "char_filters": [[1, 8], [2, 8]], "projection_size": 16, "cell_size": 32}
ELMO |= {"vocab_size": 12}
LSTM = {"vocab_size": 13, "embedding_size": 5, "cell_size": 7, "num_hidden_layers": 2}
SEQ2SEQ = {"vocab_size": 13, "embedding_size": 6, "cell_size": 8, "upper_size": 4, "num_hidden_layers": 2}
FUSION = {"num_text_layers": 1, "entity_size": 6, "num_entity_heads": 2}
TASKS = [{"name": "sst", "kind": "classification", "num_labels": 2}]

MAKE = {
    model_class: lambda made=model_class, config=config: made(config())
    for config, classes in (
        (
            lambda: ElmoConfig(**ELMO),
            (ElmoModel, ElmoForPreTraining, ElmoForSequenceClassification, ElmoForTokenClassification),
        ),
        (lambda: LstmLMConfig(**LSTM), (LstmLMModel, LstmLMForCausalLM)),
        (lambda: LstmSeq2SeqConfig(**SEQ2SEQ), (LstmSeq2SeqForConditionalGeneration,)),
        (lambda: ErnieThuConfig(**BERT | FUSION), (ErnieThuModel, ErnieThuForPreTraining)),
        (
            lambda: ElectraJointConfig(discriminator_config=ElectraConfig(**BERT, embedding_size=8)),
            (ElectraForJointPreTraining,),
        ),
    )
    for model_class in classes
}
MAKE |= {
    model_class: lambda made=model_class: made.from_encoder(language_model("bert"))
    for model_class in (InfoWordForPreTraining, SentencePairForPreTraining, SpanBertForPreTraining)
}
MAKE |= {made: lambda head=head: joint("gpt2", head, torch.float32) for head, made in HEADS.items()}
MAKE[MultiTaskModel] = lambda: MultiTaskModel.from_backbone_pretrained(language_model("bert"), tasks=TASKS)


def places() -> dict[str, str]:
    """{model class: Auto class} of the one table."""
    found = {
        place.split(".")[1]: auto
        for table in AUTO_MAP.values()
        for auto, place in table.items()
        if auto != "AutoConfig"
    }
    more = {place.split(".")[1]: auto for t in ALSO.values() for auto, some in t.items() for place in some}
    return found | more


AUTO = places()
CLASSES = sorted(MAKE, key=lambda made: made.__name__)
AGAIN = [ElmoForTokenClassification, HEADS["similarity"]]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub for two users, and this process as the first of them."""
    with Hub({ADA: "ada", BEN: "ben"}) as server, pytest.MonkeyPatch.context() as patch:
        point_hub_at(server.endpoint, ADA, str(tmp_path_factory.mktemp("cache")), patch)
        yield server


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """{repository: weights}: a tiny checkpoint of each class, some of them pulled and saved and pushed once more."""
    folder, weights = tmp_path_factory.mktemp("checkpoints"), {}
    for number, model_class in enumerate(CLASSES):
        torch.manual_seed(number)
        name = model_class.__name__
        model = MAKE[model_class]()
        model.save_pretrained(folder / name)
        if name.startswith("Elmo"):
            ElmoTokenizer().save_pretrained(folder / name)
        push(plan_push(folder / name, f"ada/{name}"))
        weights[f"ada/{name}"] = model.state_dict()
    for model_class in AGAIN:
        name = model_class.__name__
        getattr(transformers, AUTO[name]).from_pretrained(f"ada/{name}").save_pretrained(
            folder / "again" / name
        )
        push(plan_push(folder / "again" / name, f"ada/{name}-again"))
        weights[f"ada/{name}-again"] = weights[f"ada/{name}"]
    return weights


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_table_has_no_class_that_is_not_pushed():
    assert {model_class.__name__ for model_class in MAKE} == set(AUTO)


def test_each_class_comes_back_with_heirloom(hub, pushed):
    for model_class in CLASSES:
        name = model_class.__name__
        loaded = getattr(transformers, AUTO[name]).from_pretrained(f"ada/{name}")
        assert type(loaded) is model_class
        assert same(loaded.state_dict(), pushed[f"ada/{name}"]), name
        assert type(AutoConfig.from_pretrained(f"ada/{name}")) is model_class.config_class
        assert [commit.title.split(",")[0] for commit in hub.repositories[f"ada/{name}"].history()] == [
            name,
            "initial commit",
        ]


REMOTE = """
import json
import sys


class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "heirloom":
            raise ModuleNotFoundError("heirloom is not here")


sys.meta_path.insert(0, Absent())

import torch
import transformers

found = {}
for repo, auto in json.load(sys.stdin).items():
    config = transformers.AutoConfig.from_pretrained(repo, trust_remote_code=True)
    model = getattr(transformers, auto).from_pretrained(repo, config=config, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules."), type(model)
    assert type(model).__name__ == repo.split("/")[1].removesuffix("-again"), type(model)
    assert type(config) is type(model.config), repo
    found[repo] = model.state_dict()
tokenizer = transformers.AutoTokenizer.from_pretrained("ada/ElmoModel", trust_remote_code=True)
assert type(tokenizer).__module__.startswith("transformers_modules."), type(tokenizer)
elmo = transformers.AutoModel.from_pretrained("ada/ElmoModel", trust_remote_code=True)
batch = tokenizer([["An", "old", "clock"]], is_split_into_words=True, return_tensors="pt")
with torch.no_grad():
    found["vectors"] = elmo(**batch).last_hidden_state
elmo.push_to_hub("ada/by-hand")  # and what is pushed here can be pulled here
again = transformers.AutoModel.from_pretrained("ada/by-hand", trust_remote_code=True)
found["ada/by-hand"] = again.state_dict()
assert not [name for name in sys.modules if name.split(".")[0] == "heirloom"]
torch.save(found, sys.argv[1])
"""


def test_each_class_comes_back_where_heirloom_is_not_installed(hub, pushed, tmp_path):
    own = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": ADA}
    own |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    wanted = {repo: AUTO[repo.split("/")[1].removesuffix("-again")] for repo in pushed}
    done = subprocess.run(
        [sys.executable, "-I", "-c", REMOTE, str(tmp_path / "found.pt")],
        input=json.dumps(wanted),
        env=os.environ | own,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = torch.load(tmp_path / "found.pt")
    for repo, weights in pushed.items():
        assert same(found[repo], weights), repo
    assert same(found["ada/by-hand"], pushed["ada/ElmoModel"])
    batch = ElmoTokenizer()([["An", "old", "clock"]], is_split_into_words=True, return_tensors="pt")
    here = AutoModel.from_pretrained("ada/ElmoModel")
    with torch.no_grad():
        torch.testing.assert_close(found["vectors"], here(**batch).last_hidden_state)
    # The C kernel does not travel; the code says so once, and goes on.
    assert done.stderr.count("ELMo runs without its C kernel") <= 1
    assert type(AutoModel.from_pretrained("ada/by-hand")) is ElmoModel


def test_push_to_hub_of_model_and_tokenizer_go_into_one_repository(hub):
    model, tokenizer = MAKE[ElmoForPreTraining](), ElmoTokenizer(["<S>", "</S>", "<UNK>", "The", "clock"])
    model.push_to_hub("ada/two-steps", private=True)
    tokenizer.push_to_hub("ada/two-steps")
    model.push_to_hub("ada/two-steps")  # nothing new: no commit
    repository = hub.repositories["ada/two-steps"]
    assert repository.private
    assert len(repository.history()) == 3
    assert {"README.md", "modeling_elmo.py", "tokenization_elmo.py"} < set(repository.find("main").files)
    assert type(AutoModel.from_pretrained("ada/two-steps")) is ElmoModel
    loaded = AutoTokenizer.from_pretrained("ada/two-steps")
    assert type(loaded) is ElmoTokenizer
    words = [["The", "clock", "struck"]]
    assert loaded(words, is_split_into_words=True) == tokenizer(words, is_split_into_words=True)


def test_trainer_pushes(hub, tmp_path):
    arguments = TrainingArguments(
        output_dir=tmp_path / "run",
        push_to_hub=True,
        hub_model_id="ada/trained",
        hub_private_repo=True,
        max_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2
    trainer = Trainer(LstmLMForCausalLM(LstmLMConfig(**LSTM)), arguments, train_dataset=rows)
    trainer.train()
    trainer.push_to_hub()
    assert hub.repositories["ada/trained"].private
    loaded = AutoModelForCausalLM.from_pretrained("ada/trained")
    assert type(loaded) is LstmLMForCausalLM
    assert same(loaded.state_dict(), trainer.model.state_dict())


@pytest.mark.parametrize("strategy", ["end", "every_save"])
def test_our_trainers_push_no_path_and_no_token(strategy, hub, tmp_path):
    arguments = Seq2SeqTrainingArguments(
        output_dir=tmp_path / "secret" / "run",
        push_to_hub=True,
        hub_model_id=f"ada/ours-{strategy}",
        hub_token=ADA,
        hub_strategy=strategy,
        include_for_metrics=[str(tmp_path / "secret" / "metric.py")],
        max_steps=2,
        save_steps=1,
        seed=9,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2
    trainer = PretrainingTrainer(LstmLMForCausalLM(LstmLMConfig(**LSTM)), arguments, train_dataset=rows)
    trainer.train()
    if strategy == "end":
        trainer.push_to_hub()
    else:
        trainer._finish_current_push()  # of Transformers: waits for the uploads beside the training
    history = hub.repositories[f"ada/ours-{strategy}"].history()
    assert trainer.args is arguments
    assert arguments.output_dir == str(tmp_path / "secret" / "run")
    assert arguments.hub_token == ADA
    pushed = [file for commit in history for file in commit.files.items()]
    assert "training_args.bin" in dict(pushed)
    assert "model.safetensors" in dict(pushed)
    for name, file in pushed:
        assert str(tmp_path).encode() not in file.data, name
        assert ADA.encode() not in file.data, name
    (tmp_path / "found.bin").write_bytes(dict(pushed)["training_args.bin"].data)
    found = torch.load(tmp_path / "found.bin", weights_only=False)
    assert type(found) is Seq2SeqTrainingArguments
    assert (found.output_dir, found.hub_token, found.seed) == ("run", None, 9)
    assert found.include_for_metrics == ["metric.py"]
    assert found.save_strategy == arguments.save_strategy
    assert found.device.type == "cpu"
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "secret" / "run")) is LstmLMForCausalLM


def small_run(folder, **more) -> TrainingArguments:
    own = {"max_steps": 1, "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(output_dir=str(folder), push_to_hub=True, **own | more)


@pytest.mark.parametrize("objective", ["", "gpt"])
def test_a_verbs_run_is_pushed_with_its_card(objective, hub, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("The old clock struck nine .\n\nNobody came .\n\nThe clock struck .\n\n" * 4)
    options = {"char_filters": "[[1, 4]]", "projection_size": 8, "cell_size": 12, "min_count": 1}
    if objective:
        vocabulary = {"<unk>": 0, "<eos>": 1, "The": 2, "clock": 3}
        backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
        PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>"
        ).save_pretrained(tmp_path / "words")
        sizes = {"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2}
        options = {"model": json.dumps(sizes), "tokenizer": str(tmp_path / "words"), "max_tokens": 8}
    arguments = PretrainArguments(objective=objective, train_file=[str(text)], **options)
    name = f"ada/run-{objective or 'elmo'}"
    run = run_stock_pretraining if objective else run_pretraining
    run(arguments, small_run(tmp_path / "run", hub_model_id=name))
    files = hub.repositories[name].find("main").files
    card = (tmp_path / "run" / "README.md").read_bytes()
    assert files["README.md"].data == card
    assert b"trained so with heirloom" in card or b"trained with heirloom" in card
    assert {"model.safetensors", "curves.png"} <= files.keys()


def test_our_trainers_write_a_draft_over_a_draft_alone(hub, tmp_path):
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 2
    arguments = small_run(tmp_path / "run", hub_model_id="ada/drafts")
    trainer = PretrainingTrainer(LstmLMForCausalLM(LstmLMConfig(**LSTM)), arguments, train_dataset=rows)
    trainer.train()
    trainer.push_to_hub()
    card = tmp_path / "run" / "README.md"
    assert "Trainer had access to" in card.read_text()
    trainer.push_to_hub(tasks="text-generation", dataset="poems")
    assert "poems" in card.read_text()
    card.write_text("# Mine\n")
    trainer.push_to_hub(dataset="poems")
    assert card.read_text() == "# Mine\n"
    assert hub.repositories["ada/drafts"].find("main").files["README.md"].data == b"# Mine\n"


def test_what_is_left_of_training_arguments(tmp_path):
    arguments = TrainingArguments(
        tmp_path / "run", optim_args="a/b", run_name=r"C:\\ada\\trial", use_cpu=True
    )
    arguments.lr_scheduler_kwargs = {"deep": (["~/plan.json"], tmp_path / "x.json", 0.5, True, None)}
    arguments.own = object()  # no option
    trainer = SimpleNamespace(args=arguments)
    with shareable_arguments(trainer):
        assert isinstance(trainer.args, TrainingArguments)
        trainer.args.seed = 5
        kept = pickle.loads(pickle.dumps(trainer.args))
    assert trainer.args is arguments
    with pytest.raises(ZeroDivisionError), shareable_arguments(trainer):
        trainer.seed = 1 / 0
    assert trainer.args is arguments
    assert arguments.seed == 5
    assert arguments.output_dir == str(tmp_path / "run")
    assert type(kept) is TrainingArguments
    assert kept.lr_scheduler_kwargs == {"deep": (["plan.json"], "x.json", 0.5, True, None)}
    assert (kept.output_dir, kept.optim_args, kept.run_name, kept.seed) == ("run", "a/b", "trial", 5)
    assert kept.optim == arguments.optim
    assert not hasattr(kept, "own")


def test_revisions(hub, tmp_path):
    from huggingface_hub import HfApi

    weights = {}
    for number, revision in enumerate((None, "next")):
        if revision:
            HfApi().create_branch("ada/revisions", branch=revision)
            HfApi().create_tag("ada/revisions", tag="v1")
        torch.manual_seed(number)
        model = MAKE[LstmLMForCausalLM]()
        model.save_pretrained(tmp_path)
        done = push(plan_push(tmp_path, "ada/revisions"), revision=revision)
        weights[revision or "main"] = model.state_dict()
    weights["v1"], weights[done.url.rsplit("/", 1)[1]] = weights["main"], weights["next"]
    for revision, expected in weights.items():
        loaded = AutoModelForCausalLM.from_pretrained("ada/revisions", revision=revision)
        assert same(loaded.state_dict(), expected), revision
    with pytest.raises(OSError, match=r"nowhere is not a valid git identifier .*(?s:.)*ada/revisions"):
        AutoModel.from_pretrained("ada/revisions", revision="nowhere")


@pytest.mark.parametrize("token", [BEN, "hf_nobody", False], ids=["another's", "wrong", "none"])
def test_a_private_repository_opens_only_to_its_owner(token, hub, pushed, tmp_path):
    words = r"pass a token having permission|Invalid credentials in Authorization header"
    with pytest.raises(OSError, match=words):  # Transformers' own words
        AutoModel.from_pretrained("ada/LstmLMModel", token=token, cache_dir=tmp_path)


def test_a_read_only_cache_is_named(hub, pushed, tmp_path, monkeypatch):
    if os.geteuid() == 0:  # whom no permission stops

        def refuse(path, *_, **__):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "makedirs", refuse)
    else:
        tmp_path.chmod(0o555)
    with pytest.raises(OSError, match=r"PermissionError at .*Check cache directory permissions"):
        AutoModel.from_pretrained("ada/LstmLMModel", cache_dir=tmp_path / "cache")


def test_missing_code_is_named_before_a_push_and_matters_only_without_heirloom(hub, tmp_path):
    MAKE[LstmLMModel]().save_pretrained(tmp_path)
    (tmp_path / "recurrent_cache.py").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks recurrent_cache.py, .* nobody could load it from the Hub"
    ):
        plan_push(tmp_path, "ada/missing")
    assert type(AutoModel.from_pretrained(tmp_path)) is LstmLMModel


def test_foreign_code_wants_to_be_trusted_and_to_be_there(tmp_path):
    config = {"model_type": "foreign", "auto_map": {"AutoConfig": "configuration_foreign.ForeignConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"(?s)contains custom code which must be executed .*`trust_remote_code=True`"
    ):
        AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"does not appear to have a file named configuration_foreign.py"):
        AutoConfig.from_pretrained(tmp_path, trust_remote_code=True)


def test_code_beside_the_weights_refuses_a_config_that_is_newer_than_it(tmp_path):
    MAKE[LstmLMModel]().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"heirloom_format": 2}))
    beside = get_class_from_dynamic_module("configuration_lstm_lm.LstmLMConfig", tmp_path)
    assert beside.__module__.startswith("transformers_modules.")
    with pytest.raises(ValueError, match="has heirloom_format 2, .* Run `pip install -U heirloom-lm`"):
        beside.from_pretrained(tmp_path)


def test_two_tokenizers_of_one_repository(hub, tmp_path):
    MAKE[LstmSeq2SeqForConditionalGeneration]().save_pretrained(tmp_path)
    for side, words in (("source", ["old"]), ("target", ["alt", "uhr"])):
        whole = Tokenizer(WordLevel({word: place for place, word in enumerate(["<unk>", *words])}, "<unk>"))
        fast = PreTrainedTokenizerFast(tokenizer_object=whole, unk_token="<unk>")
        fast.save_pretrained(tmp_path / f"{side}_tokenizer")
    push(plan_push(tmp_path, "ada/translator"))
    for place in (tmp_path, "ada/translator"):  # as on the card
        sizes = [
            len(AutoTokenizer.from_pretrained(place, subfolder=f"{side}_tokenizer"))
            for side in ("source", "target")
        ]
        assert sizes == [2, 3]


def test_no_network_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the tries of huggingface_hub
    point_hub_at("http://127.0.0.1:9", ADA, str(tmp_path / "cache"), monkeypatch)
    with pytest.raises(OSError, match=r"(?s)couldn't connect to 'http://127.0.0.1:9'.*internet connection"):
        AutoModel.from_pretrained("ada/never-seen")


@pytest.mark.parametrize("name", ["ada/mo del", "a/b/c", "ada/mo..del"])
def test_malformed_names_are_named(name):
    with pytest.raises(
        OSError, match=r"(?s)not a local folder .* valid model identifier|Repo id must|in repo_id"
    ):
        AutoModel.from_pretrained(name)
