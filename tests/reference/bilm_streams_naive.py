"""The naive biLM over two streams of text: lane by lane and step by step, with nothing put around or between.

Letters: B lanes, T positions, P projection, D cells, L layers.
"""

import numpy as np

from reference.bilm_naive import NaiveBilm


def read_streams(
    bilm: NaiveBilm, forward: list[list], backward: list[list], states=None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The top layer (B, T, 2 P) and h (L, B, 2 P), c (L, B, 2 D) afterwards.

    Lanes are lists of tokens (word id, character ids); the backward ones stand in the order in which they are read.
    """
    size, cells, layers = bilm.lstm["projection_dim"], bilm.lstm["dim"], bilm.lstm.get("n_layers", 1)
    if states is None:
        h, c = np.zeros((layers, len(forward), 2 * size)), np.zeros((layers, len(forward), 2 * cells))
    else:
        h, c = (np.asarray(state).astype(np.float64) for state in states)
    top = np.zeros((len(forward), len(forward[0]), 2 * size))
    for direction, stream in enumerate((forward, backward)):
        h_part = slice(direction * size, (direction + 1) * size)
        c_part = slice(direction * cells, (direction + 1) * cells)
        for lane, tokens in enumerate(stream):
            for step, token in enumerate(tokens):
                vector = bilm.token_vector(token)
                for layer in range(layers):
                    name = f"RNN_{direction}/RNN/MultiRNNCell/Cell{layer}/LSTMCell/"
                    state = bilm.lstm_step(name, vector, h[layer, lane, h_part], c[layer, lane, c_part])
                    h[layer, lane, h_part], c[layer, lane, c_part] = state
                    skip = vector if layer and bilm.lstm.get("use_skip_connections") else 0
                    vector = state[0] + skip
                top[lane, step, h_part] = vector
    return top, (h, c)


def stream_losses(bilm: NaiveBilm, top: np.ndarray, labels, backward_labels) -> tuple[float, float]:
    """Mean cross-entropy of each direction's own targets (B, T); -100 is not predicted."""
    losses, size = [], bilm.lstm["projection_dim"]
    for direction, targets in enumerate((labels, backward_labels)):
        half = top[..., direction * size : (direction + 1) * size]
        parts = [
            -bilm.log_probabilities(half[place])[target - 1]
            for place, target in np.ndenumerate(np.asarray(targets))
            if target != -100
        ]
        losses.append(float(np.mean(parts)))
    return losses[0], losses[1]
