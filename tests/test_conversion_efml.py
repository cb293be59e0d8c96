"""ELMoForManyLangs folders against a twin in NumPy, written from the description of the format (elmo.md 1.9)."""

import json
import shutil

import numpy as np
import pytest
import torch

from heirloom.conversion import from_efml

WORD_MARKS = ["<bos>", "<eos>", "<oov>", "<pad>"]
WORDS = ["the", "<pad>", "dog", "<eos>", "日本", "<oov>", "longwo", "<bos>", "Dog"]
CHARACTERS = [
    "a",
    "<eow>",
    "o",
    "<pad>",
    "日",
    "<bos>",
    "g",
    "\u3000",
    "<bow>",
    "d",
    "<oov>",
    "<eos>",
    "é",
    "t",
]
CALLS = [
    [["the", "dog", "", "Dog"], ["日本", "\u3000", "zzz", "longwo", "é" * 20], ["<bos>", "<pad>", "dog"], []],
    [["dog", "the"], ["ad", "og"]],
]
SETTINGS = {
    "encoder": {
        "name": "elmo",
        "projection_dim": 5,
        "dim": 7,
        "n_layers": 2,
        "cell_clip": 0.5,
        "proj_clip": 0.25,
    },
    "token_embedder": {
        "name": "cnn",
        "activation": "relu",
        "filters": [[1, 3], [2, 4]],
        "n_highway": 2,
        "word_dim": 6,
        "char_dim": 4,
        "max_characters_per_token": 8,
    },
    "classifier": {"name": "sampled_softmax", "n_samples": 8192},
    "dropout": 0.1,
}
KINDS = {"word_char": {}, "char_only": {"word_dim": 0}, "word_only": {"char_dim": 0}}
CHANGES = {
    "equal sizes": {"char_dim": 0, "word_dim": 5},
    "tanh": {"activation": "tanh"},
    "one highway": {"n_highway": 1},
}


def make(folder, **changes):
    """A folder of random weights."""
    settings = json.loads(json.dumps(SETTINGS))
    settings["token_embedder"] |= changes
    part, lstm = settings["token_embedder"], settings["encoder"]
    draw = np.random.default_rng(3)
    shapes, features, size = {}, part["word_dim"], sum(count for _, count in part["filters"])
    if part["word_dim"]:
        shapes["word_emb_layer.embedding.weight"] = len(WORDS), part["word_dim"]
    if part["char_dim"]:
        features += size
        shapes["char_emb_layer.embedding.weight"] = len(CHARACTERS), part["char_dim"]
        for number, (width, count) in enumerate(part["filters"]):
            shapes[f"convolutions.{number}.weight"] = count, part["char_dim"], width
            shapes[f"convolutions.{number}.bias"] = (count,)
        for number in range(part["n_highway"]):
            shapes[f"highways._layers.{number}.weight"] = 2 * size, size
            shapes[f"highways._layers.{number}.bias"] = (2 * size,)
    width, cells = lstm["projection_dim"], lstm["dim"]
    shapes |= {"projection.weight": (width, features), "projection.bias": (width,)}
    encoder = {}
    for direction in ("forward", "backward"):
        for layer in range(lstm["n_layers"]):
            name = f"{direction}_layer_{layer}"
            encoder |= {f"{name}.input_linearity.weight": (4 * cells, width)}
            encoder |= {f"{name}.state_linearity.weight": (4 * cells, width)}
            encoder |= {f"{name}.state_linearity.bias": (4 * cells,)}
            encoder |= {f"{name}.state_projection.weight": (width, cells)}
    folder.mkdir(parents=True, exist_ok=True)
    parts = {}
    for file, wanted in (("token_embedder.pkl", shapes), ("encoder.pkl", encoder)):
        parts[file] = {
            name: (0.7 * draw.standard_normal(shape)).astype(np.float32) for name, shape in wanted.items()
        }
        torch.save({name: torch.tensor(array) for name, array in parts[file].items()}, folder / file)
    (folder / "config.json").write_text(
        json.dumps({"config_path": "/users4/someone/elmo/configs/sample.json"})
    )
    (folder / "sample.json").write_text(json.dumps(settings))
    for name, entries, used in (("word", WORDS, part["word_dim"]), ("char", CHARACTERS, part["char_dim"])):
        if used:
            lines = [f"{entry}\t{number}\n" for number, entry in enumerate(entries)]
            (folder / f"{name}.dic").write_text("".join(reversed(lines)), encoding="utf-8")
    return settings, parts


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class Twin:
    """The original's arithmetic, one token and one step at a time, in float64."""

    def __init__(self, settings, parts):
        self.encoder, self.embedder = settings["encoder"], settings["token_embedder"]
        self.weights = {
            name: array.astype(np.float64) for state in parts.values() for name, array in state.items()
        }
        self.memory = {}  # (row, direction, layer) -> h, c

    def token(self, word):
        size, features = self.embedder["max_characters_per_token"], []
        word = word[: size - 2]
        if self.embedder["word_dim"]:
            number = WORDS.index(word if word in WORDS else "<oov>")
            features.append(self.weights["word_emb_layer.embedding.weight"][number])
        if self.embedder["char_dim"]:
            body = [word] if word in ("<bos>", "<eos>") else [c if c in CHARACTERS else "<oov>" for c in word]
            symbols = ["<eow>", *body, "<bow>"]  # swapped, as it was trained
            symbols += ["<pad>"] * (size - len(symbols))
            table = self.weights["char_emb_layer.embedding.weight"]
            features.append(self.characters(table[[CHARACTERS.index(symbol) for symbol in symbols]]))
        return self.weights["projection.weight"] @ np.concatenate(features) + self.weights["projection.bias"]

    def characters(self, x):
        found, activation = (
            [],
            {"relu": lambda y: np.maximum(y, 0), "tanh": np.tanh}[self.embedder["activation"]],
        )
        for number, (width, _) in enumerate(self.embedder["filters"]):
            kernel = self.weights[f"convolutions.{number}.weight"]
            windows = [np.einsum("fej,je->f", kernel, x[t : t + width]) for t in range(len(x) - width + 1)]
            found.append(activation(np.max(windows, 0) + self.weights[f"convolutions.{number}.bias"]))
        h = np.concatenate(found)
        for number in range(self.embedder["n_highway"]):
            name = f"highways._layers.{number}"
            transform, gate = np.split(self.weights[f"{name}.weight"] @ h + self.weights[f"{name}.bias"], 2)
            h = sigmoid(gate) * h + (1 - sigmoid(gate)) * np.maximum(transform, 0)
        return h

    def lstm(self, row, direction, layer, inputs):
        name, cells = f"{direction}_layer_{layer}", self.encoder["dim"]
        weights = [self.weights[f"{name}.{kind}"] for kind in (
            "input_linearity.weight", "state_linearity.weight", "state_linearity.bias", "state_projection.weight"
        )]  # fmt: skip
        h, c = self.memory.get(
            (row, direction, layer), (np.zeros(self.encoder["projection_dim"]), np.zeros(cells))
        )
        outputs = []
        for x in inputs:
            i, f, g, o = np.split(
                weights[0] @ x + weights[1] @ h + weights[2], 4
            )  # the bias holds the forget part
            c = np.clip(
                sigmoid(i) * np.tanh(g) + sigmoid(f) * c,
                -self.encoder["cell_clip"],
                self.encoder["cell_clip"],
            )
            h = np.clip(
                weights[3] @ (sigmoid(o) * np.tanh(c)), -self.encoder["proj_clip"], self.encoder["proj_clip"]
            )
            outputs.append(h)
        self.memory[row, direction, layer] = h, c
        return outputs

    def __call__(self, row, sentence):
        """(L + 1, n, 2 P) of one sentence, without its marks."""
        tokens = [self.token(word) for word in ["<bos>", *sentence, "<eos>"]]
        halves = []
        for direction, step in (("forward", 1), ("backward", -1)):
            hidden, layers = tokens[::step], [tokens]
            for layer in range(self.encoder["n_layers"]):
                outputs = self.lstm(row, direction, layer, hidden)
                hidden = [y + x for y, x in zip(outputs, hidden, strict=True)] if layer else outputs
                layers.append(hidden[::step])
            halves.append(np.array(layers))
        return np.concatenate(halves, 2)[:, 1:-1]


@pytest.mark.parametrize("kind", [*KINDS, *CHANGES])
def test_the_model_and_its_tokenizer(kind, tmp_path):
    twin = Twin(*make(tmp_path / "efml", **(KINDS | CHANGES)[kind]))
    model, tokenizer = from_efml(tmp_path / "efml")
    assert not model.training
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokenizer = type(tokenizer).from_pretrained(tmp_path / "tokenizer")
    states = None
    for sentences in CALLS:
        batch = tokenizer(sentences, is_split_into_words=True, padding=True, return_tensors="pt")
        with torch.no_grad():
            outputs = model(**batch, states=states, output_hidden_states=True)
        states = outputs.states
        for row, sentence in enumerate(sentences):
            expected = twin(row, sentence)
            found = torch.stack(outputs.hidden_states)[:, row, : len(sentence)].numpy()
            for position, word in enumerate(sentence):
                np.testing.assert_allclose(
                    found[:, position],
                    expected[:, position],
                    rtol=0,
                    atol=1e-5,
                    err_msg=f"{word!r} in {sentence}",
                )
    h = np.concatenate([twin.memory[1, direction, 1][0] for direction in ("forward", "backward")])
    np.testing.assert_allclose(states[0][1, 1].numpy(), h, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_cut_before_they_are_looked_up(kind, tmp_path):
    make(tmp_path, **KINDS[kind])
    _, tokenizer = from_efml(tmp_path)
    cut, long = (tokenizer([[word]], is_split_into_words=True) for word in ("longwo", "longwords"))
    assert long["input_ids"] == cut["input_ids"]
    assert long["char_ids"] == cut["char_ids"]


def test_the_config_and_the_words(tmp_path):
    make(tmp_path)
    model, tokenizer = from_efml(tmp_path)
    config = model.config
    assert (config.vocab_size, config.char_vocab_size) == (len(WORDS) + 1, len(CHARACTERS) + 1)
    assert (config.bos_token_id, config.eos_token_id) == (WORDS.index("<bos>") + 1, WORDS.index("<eos>") + 1)
    assert config.bow_char_id == CHARACTERS.index("<eow>") + 1
    assert config.eow_char_id == CHARACTERS.index("<bow>") + 1
    assert (config.forget_bias, config.has_token_projection) == (0.0, True)
    assert tokenizer.convert_ids_to_tokens(range(1, config.vocab_size)) == WORDS
    assert tokenizer.pad_token not in WORDS
    assert tokenizer.unk_token == "<oov>"


@pytest.mark.parametrize("place", ["sample.json", "configs/sample.json", "../configs/sample.json"])
def test_where_the_architecture_may_lie(tmp_path, place):
    folder = tmp_path / "efml"
    make(folder)
    (folder / place).parent.mkdir(exist_ok=True)
    shutil.move(folder / "sample.json", folder / place)
    from_efml(folder)
    (folder / place).unlink()
    with pytest.raises(FileNotFoundError, match=r"sample\.json lies at none of .* Put it into the folder"):
        from_efml(folder)


def test_parts_that_were_saved_inside_something(tmp_path):
    make(tmp_path)
    plain = from_efml(tmp_path)[0].state_dict()
    for file in ("token_embedder.pkl", "encoder.pkl"):
        state = torch.load(tmp_path / file)
        torch.save({f"module.{name}": weight for name, weight in state.items()}, tmp_path / file)
    assert all(
        torch.equal(weight, plain[name]) for name, weight in from_efml(tmp_path)[0].state_dict().items()
    )


def test_a_line_with_only_an_id_is_the_ideographic_space(tmp_path):
    make(tmp_path)
    lines = (tmp_path / "char.dic").read_text(encoding="utf-8")
    number = CHARACTERS.index("\u3000")
    (tmp_path / "char.dic").write_text(
        lines.replace(f"\u3000\t{number}\n", f" \t{number}\n"), encoding="utf-8"
    )
    _, tokenizer = from_efml(tmp_path)
    assert tokenizer.char_ids_of(["\u3000"])[0, 1] == number + 1


def refused(match, folder, error=ValueError):
    with pytest.raises(error, match=match) as caught:
        from_efml(folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("file", "before", "after", "words"),
    [
        ("char.dic", "a\t0\n", "", r"char\.dic: the ids must be 0, 1, \.\.\. without gaps; missing: \[0\]"),
        ("char.dic", "a\t0\n", "a\tx\n", r"char\.dic, line 14: expected entry<TAB>id, found 'a\\tx'"),
        ("char.dic", "a\t0\n", "a\t2\n", r"line 14: id 2 is there twice, for 'o' and 'a'"),
        ("char.dic", "a\t0\n", "o\t0\n", r"char\.dic: entries that are there twice: \['o'\]"),
        ("char.dic", "<bow>\t", "bow\t", r"char\.dic lacks \['<bow>'\]"),
        ("word.dic", "<oov>\t", "oov\t", r"word\.dic lacks \['<oov>'\]"),
        (
            "word.dic",
            "Dog\t8\n",
            "",
            r"word\.dic holds 8 entries, but word_emb_layer\.embedding\.weight in .* 9 rows",
        ),
        ("sample.json", '"cnn"', '"lstm"', r"option token_embedder\.name must be 'cnn', found 'lstm'"),
        ("sample.json", '"elmo"', '"lstm"', r"option encoder\.name must be 'elmo', found 'lstm'"),
        (
            "sample.json",
            '"dim": 7',
            '"dim": 5',
            r"encoder\.projection_dim \(5\) must be smaller than encoder\.dim",
        ),
        (
            "sample.json",
            '"dim": 7',
            '"dim": 8',
            r"has shape \(28, 5\), expected \(32, 5\); see option encoder\.dim",
        ),
        ("sample.json", '"n_layers": 2', '"n_layers": 1', r"never read: \['forward_layer_1\.input_linearity"),
        ("sample.json", "[2, 4]", "[2, 5]", "see option token_embedder.filters"),
        ("sample.json", '"word_dim": 6', '"word_dim": 5', "see option token_embedder.word_dim"),
        ("sample.json", '"char_dim": 4', '"char_dim": 5', "see option token_embedder.char_dim"),
        ("config.json", "config_path", "path", "names no config_path"),
    ],
)
def test_folders_that_do_not_fit_together(tmp_path, file, before, after, words):
    make(tmp_path)
    text = (tmp_path / file).read_text(encoding="utf-8")
    assert before in text
    (tmp_path / file).write_text(text.replace(before, after), encoding="utf-8")
    refused(words, tmp_path)


def test_files_that_are_missing_or_broken(tmp_path):
    refused("is no folder, expected one of ELMoForManyLangs", tmp_path / "nowhere", FileNotFoundError)
    make(tmp_path)
    for file in ("encoder.pkl", "token_embedder.pkl", "char.dic", "word.dic", "config.json"):
        raw = (tmp_path / file).read_bytes()
        (tmp_path / file).unlink()
        refused(rf"{file} does not exist, expected", tmp_path, FileNotFoundError)
        (tmp_path / file).write_bytes(b"\xff" + raw[: len(raw) // 2])
        refused(rf"{file} is no ", tmp_path)
        (tmp_path / file).write_bytes(raw)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "encoder.pkl")
    refused(r"encoder\.pkl holds no forward_layer_0\.input_linearity\.weight", tmp_path)
