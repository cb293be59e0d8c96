"""`heirloom push`: what is sent and what is not, one commit, broken uploads, two at a time, and each mistake in plain words."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from hub_server import File, Hub, Repository, point_hub_at
from huggingface_hub import parse_eval_result_entries
from safetensors.numpy import load, save_file
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.sharing.cards import CardFacts, write_card
from heirloom.sharing.push_checks import card_warnings, find_private, missing_files
from heirloom.sharing.pushing import plan_push, push

ADA, BEN = "hf_ada", "hf_ben"  # tokens
SECRET = "hf_" + "Ab1" * 11
CARD = "---\nlicense: mit\nlanguage: en\n---\n# A model\n![curves](curves.png)\n"
CONFIG = {
    "model_type": "lstm-lm",
    "architectures": ["LstmLMForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_lstm_lm.LstmLMConfig",
        "AutoModelForCausalLM": "modeling_lstm_lm.LstmLMForCausalLM",
    },
}


def checkpoint(folder, number=1.0, card=CARD):
    """A folder that has all of a run: what belongs on the Hub, and what does not."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    (folder / "configuration_lstm_lm.py").write_text("class LstmLMConfig: pass\n")
    (folder / "modeling_lstm_lm.py").write_text("from .configuration_lstm_lm import LstmLMConfig\n")
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"vocab": {"/home/ada/words": 0}}')
    (folder / "curves.png").write_bytes(b"png")
    if card:
        (folder / "README.md").write_text(card)
    save_file({"weight": np.full(5, number, np.float32)}, folder / "model.safetensors")
    for name in ("training_args.bin", "log.jsonl", "trainer_state.json"):
        (folder / name).write_text("/home/ada/secret")
    (folder / "checkpoint-10").mkdir(exist_ok=True)
    (folder / "checkpoint-10" / "config.json").write_text("{}")
    return folder


def shard(folder, numbers):
    """The weights of a folder in two files."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = [f"model-0000{place}-of-00002.safetensors" for place in (1, 2)]
    for name, number in zip(names, numbers, strict=True):
        save_file({name: np.full(5, number, np.float32)}, folder / name)
    index = {"metadata": {}, "weight_map": {name: name for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BELONGS = ["README.md", "config.json", "configuration_lstm_lm.py", "curves.png", "model.safetensors"]
BELONGS += ["modeling_lstm_lm.py", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with Hub({ADA: "ada", BEN: "ben"}) as server:
        point_hub_at(server.endpoint, ADA, str(tmp_path / "cache"), monkeypatch)
        yield server


@pytest.fixture
def run(tmp_path):
    return checkpoint(tmp_path / "run")


def heirloom(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def files_of(hub, repo="ada/model", revision="main"):
    return hub.repositories[repo].find(revision).files


def test_a_dry_run_lists_and_sends_nothing(hub, run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    done = heirloom("push", run, "ada/model", "--dry-run")
    assert done.exit_code == 0, done.stderr
    listed = re.findall(r"^ *([\d,]+)  (\S+)$", done.stdout, re.M)
    assert [name for _, name in listed] == BELONGS
    assert dict(map(reversed, listed))["config.json"] == str((run / "config.json").stat().st_size)
    assert "left out: checkpoint-10/, log.jsonl, trainer_state.json, training_args.bin\n" in done.stdout
    assert "a new repository ada/model would be private" in done.stdout
    assert done.stderr == ""
    (run / "README.md").unlink()
    (run / "tokenizer_config.json").unlink()
    done = heirloom("push", run, "ada/model", "--dry-run", "--public")
    assert "would be public" in done.stdout
    for warning in (
        "has no README.md",
        "no tokenizer;",
        "the license is unknown",
        "the language is not named",
    ):
        assert f"warning: {warning}" in done.stderr.replace(f"{run} ", "")
    assert not hub.requests


def test_a_push_is_one_commit(hub, run):
    done = heirloom("push", run, "ada/model", "--message", "First")
    assert done.exit_code == 0, done.stderr
    repository = hub.repositories["ada/model"]
    assert repository.private
    assert [commit.title for commit in repository.history()] == ["First", "initial commit"]
    assert sorted(set(files_of(hub)) - {".gitattributes"}) == BELONGS
    assert all(files_of(hub)[name].data == (run / name).read_bytes() for name in BELONGS)
    assert f"pushed: {hub.endpoint}/ada/model/commit/{repository.branches['main']} (private)" in done.stdout
    again = heirloom("push", run, "ada/model", "--public")
    assert "nothing has changed" in again.stdout
    assert "ada/model existed and is private; change that in its settings" in again.stderr
    assert len(repository.history()) == 2
    assert heirloom("push", run, "ada/model-2", "--public").exit_code == 0
    assert not hub.repositories["ada/model-2"].private
    assert "LstmLMForCausalLM, pushed by heirloom" in hub.repositories["ada/model-2"].history()[0].title


def test_a_card_is_made_where_there_is_none_and_none_is_overwritten(hub, run):
    (run / "README.md").unlink()
    push(plan_push(run, "ada/model"))
    card = files_of(hub)["README.md"].data.decode()
    for piece in (
        "# ada/model",
        "- lstm-lm\n",
        'AutoModelForCausalLM.from_pretrained("ada/model")',
        "Not stated.",
    ):
        assert piece in card
    edited = files_of(hub) | {"README.md": File(b"edited on the Hub", False)}
    hub.repositories["ada/model"].add("main", "edit", edited)
    push(plan_push(checkpoint(run, 2.0, card=None), "ada/model"))
    assert files_of(hub)["README.md"].data == b"edited on the Hub"


FACTS = {
    "auto_class": "AutoModelForCausalLM",
    "summary": "An LSTM.",
    "data": "`a.txt`.",
    "results": {},
    "training": {},
}


@pytest.mark.parametrize("name", ["run", "{place}/run"], ids=["folder", "place"])
def test_an_unedited_card_is_sent_with_the_repositorys_name(name, hub, run, tmp_path):
    write_card(run, CardFacts(name=name.format(place=tmp_path.name), **FACTS), "lstm-lm.md")
    before = {path: path.read_bytes() for path in (run / "README.md", run / "card.json")}
    told = f"README.md is sent with the name ada/model in it; the one in {run} stays as it is\n"
    done = heirloom("push", run, "ada/model", "--dry-run")
    assert told in done.stdout
    assert "an example" not in done.stderr
    for repo in ("ada/model", "ada/second"):  # and again, over what the first push sent
        for changed in ("The clock", "The bell"):
            facts = CardFacts(name=name.format(place=tmp_path.name), **FACTS | {"summary": changed})
            write_card(run, facts, "lstm-lm.md")
            push(plan_push(run, repo))
            card = files_of(hub, repo)["README.md"].data.decode()
            assert f"# {repo}\n\n{changed}\n" in card
            assert card.count(f'from_pretrained("{repo}")') == 2
            assert 'run")' not in card
    write_card(run, CardFacts(name=name.format(place=tmp_path.name), **FACTS), "lstm-lm.md")
    assert {path: path.read_bytes() for path in before} == before


def test_edits_and_names_that_somebody_chose_are_sent_as_they_are(hub, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = write_card(run, CardFacts(name="run", **FACTS), "lstm-lm.md")
    edited = text.replace("An LSTM.", "My LSTM.") + '\npipe = pipeline("fill-mask", model="./run")\n'
    edited += 'AutoModel.from_pretrained("gpt2"); AutoModel.from_pretrained("ada/model")\n'
    (run / "README.md").write_text(edited)
    (tmp_path / "ada" / "model").mkdir(parents=True)  # a clone
    done = heirloom("push", run, "ada/model")
    warned = re.findall(
        r"an example in README.md loads '(.*)', which only your disk has; write (.*) there", done.stderr
    )
    assert warned == [("run", "ada/model"), ("./run", "ada/model")]
    assert "is sent with the name" not in done.stdout
    assert files_of(hub)["README.md"].data == edited.encode()

    own = write_card(run, CardFacts(name="ada/family", **FACTS), "lstm-lm.md")
    for record in (None, "{", '{"template": "lstm-lm.md", "rendered": "x", "facts": {"pictures": []}}'):
        if record:
            (run / "card.json").write_text(record)
        plan = plan_push(run, "ada/copy")
        assert (plan.notes, plan.files["README.md"]) == ([], run / "README.md")
        assert not [warning for warning in plan.warnings if "an example" in warning]
    assert (run / "README.md").read_text() == own


def test_results_on_a_data_set_of_the_hub_are_sent(hub, run):
    write_card(run, CardFacts(name="run", dataset="ada/sst", scores={"accuracy": 0.5}, **FACTS), "lstm-lm.md")
    plan = plan_push(run, "ada/model")
    assert ".eval_results/" not in plan.left_out
    push(plan)
    sent = yaml.safe_load(files_of(hub)[".eval_results/heirloom.yaml"].data)
    assert [(entry.dataset_id, entry.value) for entry in parse_eval_result_entries(sent)] == [
        ("ada/sst", 0.5)
    ]


def test_weights_of_an_earlier_push_do_not_stay(hub, run):
    push(plan_push(run, "ada/model"))
    shard(run, (1, 2))
    assert "removed from the Hub: model.safetensors\n" in heirloom("push", run, "ada/model").stdout
    weights = {name for name in files_of(hub) if "safetensors" in name}
    assert weights == {path.name for path in run.glob("*safetensors*")}
    assert len(hub.repositories["ada/model"].history()) == 3


def test_revisions(hub, run):
    push(plan_push(run, "ada/model"))
    with pytest.raises(
        ValueError, match="ada/model has no branch 'next'. Make it with `hf repos branch create"
    ):
        push(plan_push(run, "ada/model"), revision="next")
    repository = hub.repositories["ada/model"]
    repository.branches["next"] = repository.branches["main"]
    assert heirloom("push", checkpoint(run, 2.0), "ada/model", "--revision", "next").exit_code == 0
    assert load(files_of(hub, revision="next")["model.safetensors"].data)["weight"][0] == 2
    assert load(files_of(hub)["model.safetensors"].data)["weight"][0] == 1


def test_a_broken_upload_goes_on(hub, run, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the tries of huggingface_hub
    shard(run, (1, 2))
    (run / "curves.png").unlink()
    hub.fail("PUT", "/lfs/", after=1, times=6)
    done = heirloom("push", run, "ada/model")
    assert done.exit_code == 1
    assert "the Hub failed in the middle of the push to ada/model (500" in done.stderr
    assert "run the same command again, weights that have arrived are not sent again" in done.stderr
    assert len(hub.objects) == 1
    assert set(files_of(hub)) == {".gitattributes"}
    hub.requests.clear()
    assert heirloom("push", run, "ada/model").exit_code == 0
    assert len([request for request in hub.requests if request.startswith("PUT")]) == 1
    assert len(files_of(hub)) == 10


def test_a_failure_of_the_commit_is_told(hub, run):
    hub.fail("POST", "/commit/", status=503)
    with pytest.raises(ConnectionError, match=r"failed in the middle .*503.* Nothing was committed"):
        push(plan_push(run, "ada/model"))
    hub.fail("POST", "/validate-yaml", status=502)
    with pytest.raises(ConnectionError, match="no Hub, or one in trouble: it sent no JSON. Check proxies"):
        push(plan_push(run, "ada/model"))
    hub.fail("GET", "/revision/", status=500, times=9)
    with pytest.raises(ConnectionError, match=r"failed in the middle .*500"):
        push(plan_push(run, "ada/model"))
    hub.before.clear()
    hub.requests.clear()
    assert push(plan_push(run, "ada/model")).changed
    assert not [request for request in hub.requests if request.startswith("PUT")]


def test_two_pushes_at_once_never_mix(hub, tmp_path):
    folders = [checkpoint(tmp_path / f"run{number}", number) for number in (1, 2)]
    (folders[1] / "tokenizer.json").write_text('{"vocab": {}}')
    both = threading.Barrier(2)

    def wait(method, path):
        if method == "POST" and "/commit/" in path:
            both.wait(timeout=60)

    def try_to_push(folder):
        try:
            return push(plan_push(folder, "ada/model"))
        except ConnectionError as error:
            return error

    hub.before.append(wait)
    with ThreadPoolExecutor() as pool:
        results = list(pool.map(try_to_push, folders))
    hub.before.clear()
    lost = next(number for number, result in enumerate(results) if isinstance(result, ConnectionError))
    assert not isinstance(results[1 - lost], Exception)
    assert "somebody else pushed to ada/model meanwhile" in str(results[lost])
    for number in (1 - lost, lost):  # the second time for the loser
        if number == lost:
            push(plan_push(folders[number], "ada/model"))
        for name in ("model.safetensors", "tokenizer.json"):
            assert files_of(hub)[name].data == (folders[number] / name).read_bytes()
    assert len(hub.repositories["ada/model"].history()) == 3


@pytest.mark.parametrize(
    "name", ["model", "a/b/c", "ada/", "-ada/model", "ada/mo del", "ada/mo..del", "ada/model.git", "x" * 97]
)
def test_malformed_names(name, run):
    with pytest.raises(ValueError, match=r"name must be USER/NAME of letters, digits.*found '"):
        plan_push(run, name)


def test_tokens_and_owners(hub, run, monkeypatch):
    plan = plan_push(run, "ben/model")
    for private in (False, True):
        hub.repositories["ben/model"] = Repository("ben/model", private)
        hub.repositories["ben/model"].add("main", "initial commit", {})
        with pytest.raises(PermissionError, match="may not write to ben/model: it is somebody else's"):
            push(plan)
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    with pytest.raises(
        PermissionError, match="does not know the token .* Run `hf auth login`, or correct HF_TOKEN"
    ):
        push(plan_push(run, "ada/model"))
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        PermissionError, match="no token of the Hugging Face Hub. Make one that may write at http"
    ):
        push(plan_push(run, "ada/model"))
    assert "ada/model" not in hub.repositories


def test_no_network(run, tmp_path, monkeypatch):
    point_hub_at("http://127.0.0.1:9", ADA, str(tmp_path / "cache"), monkeypatch)
    done = heirloom("push", run, "ada/model")
    assert done.exit_code == 1
    assert "the Hub could not be reached for ada/model" in done.stderr
    assert "Check the network, proxies and HF_ENDPOINT" in done.stderr
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError, match="nothing was sent to ada/model: HF_HUB_OFFLINE is set. Unset it"
    ):
        push(plan_push(run, "ada/model"))


def test_an_upload_that_breaks_off_by_itself(hub, run, monkeypatch):
    def breaks(*_, **__):
        raise RuntimeError("the storage client gave up")

    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.preupload_lfs_files", breaks)
    with pytest.raises(
        ConnectionError, match=r"broke off \(the storage client gave up\). Nothing was committed; run the"
    ):
        push(plan_push(run, "ada/model"))


def test_a_card_that_the_hub_refuses(hub, run):
    (run / "README.md").write_text("---\ntags: [a\n---\n# A model\n")
    plan = plan_push(run, "ada/model")
    assert any("YAML head of README.md cannot be read" in warning for warning in plan.warnings)
    with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
        push(plan)


def test_folders_without_a_checkpoint(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the folder of a checkpoint, found no folder"):
        plan_push(tmp_path / "none", "ada/model")
    (run / "configuration_lstm_lm.py").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"lacks configuration_lstm_lm.py, .* save it again with save_pretrained"
    ):
        plan_push(run, "ada/model")
    (run / "configuration_lstm_lm.py").write_text("")
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        plan_push(run, "ada/model")
    (run / "configuration_lstm_lm.py").unlink()
    shard(run, (1, 2))
    (run / "model-00002-of-00002.safetensors").unlink()
    assert missing_files(run) == ["configuration_lstm_lm.py", "model-00002-of-00002.safetensors"]
    for path in run.glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"found no weights. Others, such as pytorch_model.bin, are not pushed"
    ):
        plan_push(run, "ada/model")
    (run / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON .* Save the checkpoint again"):
        plan_push(run, "ada/model")
    (run / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"found no config.json; push .*checkpoint-10 instead"):
        plan_push(run, "ada/model")


def test_code_of_another_repository_is_told(run):
    places = {
        "AutoConfig": "ben/code--configuration_lstm_lm.LstmLMConfig",
        "AutoModel": "ada/model--modeling_x.X",
    }
    (run / "config.json").write_text(json.dumps(CONFIG | {"auto_map": places}))
    (run / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": [null, "eve/words--tokenization_x.X"]}}'
    )
    told = [warning.split(",")[0] for warning in plan_push(run, "ada/model").warnings]
    assert told == [f"the checkpoint runs code of {name}" for name in ("ben/code", "eve/words")]


def test_tokens_and_paths_stay_at_home(hub, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret-of-ada")
    (run / "config.json").write_text(json.dumps(CONFIG | {"a": "/home/ada/corpus.txt"}, indent=2))
    (run / "README.md").write_text(f"{CARD}\nlogin {SECRET}\n")
    (run / "modeling_lstm_lm.py").write_text("token = 'secret-of-ada'\n")
    save_file({"weight": np.ones(5)}, run / "model.safetensors", {"from": "/Users/ada/old.ckpt"})
    done = heirloom("push", run, "ada/model", "--dry-run")
    assert done.exit_code == 1
    for line in (
        "config.json, line 10: the local path /home/ada/corpus.txt",
        "README.md, line 8: an access token (hf_Ab1...)",
        "modeling_lstm_lm.py, line 1: an access token (secret...)",
        "model.safetensors, line 1: the local path /Users/ada/old.ckpt",
        "revoked: https://huggingface.co/settings/tokens",
    ):
        assert line in done.stderr
    assert SECRET not in done.stderr
    assert not hub.requests


@pytest.mark.parametrize(
    ("text", "is_private"),
    [
        ('"/home/ada/x.txt"', True),
        ("data of /mnt/disk1/x", True),
        ("(/tmp/run)", True),
        ("file:///home/ada/x", True),
        (r'"C:\\Users\\ada\\x.txt"', True),
        ("in /cluster9/ada/corpora", True),  # where this user lives
        (SECRET, True),
        ("https://example.org/home/ada/x", False),
        ("../home/ada and/or ~/data/x", False),
        ("a route such as /api/models/x", False),
        ("from huggingface_hub import hf_hub_download, hf_raise_for_status", False),
        (r"re.compile(r'\d:\s*')", False),
    ],
)
def test_what_counts_as_private(text, is_private, monkeypatch):
    monkeypatch.setenv("HOME", "/cluster9/ada")
    assert bool(find_private({"notes.md": f"x\n{text}\n".encode()}, None)) == is_private
    vocabulary = find_private({"source_tokenizer/vocab.txt": text.encode()}, None)
    assert bool(vocabulary) == (text == SECRET)


def test_card_warnings():
    assert card_warnings(CARD, ["curves.png"]) == []
    assert card_warnings(CARD, []) == ["README.md shows curves.png, which is not there"]
    assert "has no YAML head" in card_warnings("# A model", [])[0]
    text = "---\nlicense: unknown\n---\n[More Information Needed]\n![x](https://example.org/x.png)"
    warnings = card_warnings(text, [])
    assert len(warnings) == 3
    assert "the license is unknown" in warnings[0]
    assert "the language is not named" in warnings[1]
    assert "1 gaps" in warnings[2]
