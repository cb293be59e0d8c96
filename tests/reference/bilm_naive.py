"""A slow biLM in NumPy: the published computation word by word and step by step, in the files' own names and layouts.

Peters et al. 2018, section 3, as bilm-tf and AllenNLP compute it. No code is shared with heirloom: no batching, no
padding, no packing, no trimming, no caching. Sentences are lists of tokens, a token is (word id, character ids).

Letters: n words of a sentence, C characters a word, E character embedding, P projection, D cells, L layers, R rows.
"""

import numpy as np

MARKS = {"bos": 257, "eos": 258, "bow": 259, "eow": 260, "pad": 261}  # as the model sees them: raw symbol + 1


def character_ids(word: str, size: int) -> list[int]:
    """A word's C = `size` character ids: its UTF-8 bytes between two marks, cut to fit, all plus one."""
    if word in ("<S>", "</S>"):
        body = [256 if word == "<S>" else 257]
    else:
        body = list(word.encode("utf-8", "ignore")[: size - 2])
    ids = [258, *body, 259]
    return [number + 1 for number in ids + [260] * (size - len(ids))]


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


class NaiveBilm:
    """The biLM of an options.json (`options`) and its HDF5 arrays (`weights`, by dataset name)."""

    def __init__(self, options: dict, weights: dict, dtype=np.float64, marks=MARKS, forget_bias=1.0):
        self.lstm, self.char_cnn = options["lstm"], options.get("char_cnn")
        self.weights = {name: np.asarray(array, dtype) for name, array in weights.items()}
        self.marks, self.forget_bias = marks, dtype(forget_bias)

    def token_vector(self, token) -> np.ndarray:
        """Word id and character ids to (P,): the features, and a projection where the file has one."""
        word, chars = token
        features = []
        if "embedding" in self.weights:
            features.append(self.weights["embedding"][word - 1])  # the file has no padding row
        if self.char_cnn:
            features.append(self.highways(self.convolutions(chars)))
        vector = np.concatenate(features)
        if "CNN_proj/W_proj" in self.weights:
            vector = vector @ self.weights["CNN_proj/W_proj"] + self.weights["CNN_proj/b_proj"]
        return vector

    def convolutions(self, chars) -> np.ndarray:
        """The maximum over every window of all C columns, padding included, for each filter."""
        rows = self.weights["char_embed"]
        table = np.concatenate([np.zeros_like(rows[:1]), rows])  # id 0 is no character
        columns = table[np.asarray(chars)]  # (C, E)
        pooled = []
        for number, (width, _) in enumerate(self.char_cnn["filters"]):
            kernel, bias = self.weights[f"CNN/W_cnn_{number}"][0], self.weights[f"CNN/b_cnn_{number}"]
            windows = [columns[start : start + width] for start in range(len(columns) - width + 1)]
            values = [np.tensordot(window, kernel, 2) + bias for window in windows]
            pooled.append(np.max(values, 0))
        activation = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}[self.char_cnn["activation"]]
        return activation(np.concatenate(pooled))

    def highways(self, x) -> np.ndarray:
        """The array called "carry" gates the transformed part; relu whatever the CNN's activation is."""
        for number in range(self.char_cnn.get("n_highway", 0)):
            name = f"CNN_high_{number}/"
            gate = sigmoid(x @ self.weights[name + "W_carry"] + self.weights[name + "b_carry"])
            new = np.maximum(x @ self.weights[name + "W_transform"] + self.weights[name + "b_transform"], 0)
            x = gate * new + (1 - gate) * x
        return x

    def lstm_step(self, name: str, x, h, c) -> tuple[np.ndarray, np.ndarray]:
        """One step of the cell whose datasets start with `name`: the next h and c."""
        cell_clip, proj_clip = self.lstm.get("cell_clip"), self.lstm.get("proj_clip")
        gates = np.concatenate([x, h]) @ self.weights[name + "W_0"] + self.weights[name + "B"]
        i, j, f, o = np.split(gates, 4)
        c = sigmoid(f + self.forget_bias) * c + sigmoid(i) * np.tanh(j)
        if cell_clip is not None:
            c = np.clip(c, -cell_clip, cell_clip)
        h = sigmoid(o) * np.tanh(c)
        if name + "W_P_0" in self.weights:
            h = h @ self.weights[name + "W_P_0"]
            if proj_clip is not None:
                h = np.clip(h, -proj_clip, proj_clip)
        return h, c

    def run(self, sentences, states=None) -> tuple[list[list[np.ndarray]], tuple[np.ndarray, np.ndarray]]:
        """Layers 0..L of each sentence, (n + 2, 2 P) with both sentence marks, and h (L, R, 2 P), c (L, R, 2 D)."""
        size, cells, layers = self.lstm["projection_dim"], self.lstm["dim"], self.lstm.get("n_layers", 1)
        dtype = next(iter(self.weights.values())).dtype
        rows = max(len(sentences), 0 if states is None else states[0].shape[1])
        h, c = np.zeros((layers, rows, 2 * size), dtype), np.zeros((layers, rows, 2 * cells), dtype)
        if states is not None:
            h[:, : states[0].shape[1]], c[:, : states[1].shape[1]] = states
        results = []
        for row, sentence in enumerate(sentences):
            tokens = [self.boundary("bos", 1), *sentence, self.boundary("eos", 2)]
            vectors = [self.token_vector(token) for token in tokens]
            outputs = [np.array([np.concatenate([vector, vector]) for vector in vectors])]
            halves = [vectors, vectors]
            for layer in range(layers):
                for direction in (0, 1):
                    name = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
                    h_part = slice(direction * size, (direction + 1) * size)
                    c_part = slice(direction * cells, (direction + 1) * cells)
                    state = h[layer, row, h_part], c[layer, row, c_part]
                    inputs, output = halves[direction], [None] * len(tokens)
                    steps = range(len(tokens))
                    for t in reversed(steps) if direction else steps:
                        state = self.lstm_step(name, inputs[t], *state)
                        output[t] = state[0]
                        if layer and self.lstm.get("use_skip_connections"):
                            output[t] = output[t] + inputs[t]
                    h[layer, row, h_part], c[layer, row, c_part] = state
                    halves[direction] = output
                outputs.append(np.array([np.concatenate(pair) for pair in zip(*halves, strict=True)]))
            results.append(outputs)
        return results, (h, c)

    def boundary(self, mark: str, word: int):
        """`<S>` (word id 1) or `</S>` (2) as a token."""
        marks = self.marks
        size = self.char_cnn["max_characters_per_token"] if self.char_cnn else 3
        return word, [marks["bow"], marks[mark], marks["eow"]] + [marks["pad"]] * (size - 3)

    def log_probabilities(self, hidden) -> np.ndarray:
        """One direction's hidden state (P,) to a log-probability for each line of the vocabulary."""
        logits = self.weights["softmax/W"] @ hidden + self.weights["softmax/b"]
        return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())

    def losses(self, sentences, labels) -> tuple[float, float]:
        """Mean cross-entropy of every next and of every previous word; label -100 is not predicted."""
        size, totals, counts = self.lstm["projection_dim"], [0.0, 0.0], [0, 0]
        for layers, words in zip(self.run(sentences)[0], labels, strict=True):
            top, targets = layers[-1], [1, *words, 2]
            for direction, shift in enumerate((1, -1)):
                for t in range(len(targets)):
                    at = t + shift
                    if 0 <= at < len(targets) and targets[at] != -100:
                        half = top[t, direction * size : (direction + 1) * size]
                        totals[direction] -= self.log_probabilities(half)[targets[at] - 1]
                        counts[direction] += 1
        return totals[0] / counts[0], totals[1] / counts[1]


def scalar_mix(layers, weights, gamma, norm=None, eps=1e-13) -> list[np.ndarray]:
    """Mix sentences' layers (n + 2, 2 P) to words (n, 2 P); `norm` is None, "allennlp" or "bilm-tf".

    One mean and variance per layer over all positions of all sentences: with the sentence marks in AllenNLP, without
    them in bilm-tf.
    """
    shares = np.exp(weights - np.max(weights)) / np.exp(weights - np.max(weights)).sum()
    mixed = [0.0] * len(layers)
    for number, share in enumerate(shares):
        planes = [sentence[number] for sentence in layers]
        counted = np.concatenate([plane if norm == "allennlp" else plane[1:-1] for plane in planes])
        mean, variance = (counted.mean(), counted.var() + eps) if norm else (0.0, 1.0)
        mixed = [
            total + gamma * share * (plane[1:-1] - mean) / np.sqrt(variance)
            for total, plane in zip(mixed, planes, strict=True)
        ]
    return mixed
