"""How alike are the vectors of one word in two sentences, layer by layer? Characters: the same. LSTMs: the context tells.

python examples/layers_of_a_word.py CHECKPOINT [WORD]
"""

import sys

import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer

import heirloom  # noqa: F401  announces ELMo to the Auto classes

SENTENCES = ["Return the value of the key .", "The key must be pressed twice ."]


def main(checkpoint: str, word: str = "key") -> list[float]:
    """Print and return the cosine of the word's two vectors in each layer."""
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint), AutoModel.from_pretrained(checkpoint)
    words = [sentence.split() for sentence in SENTENCES]
    batch = tokenizer(words, is_split_into_words=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        layers = model(**batch, output_hidden_states=True).hidden_states
    places = [row.index(word) for row in words]
    cosines = [cosine_similarity(layer[0, places[0]], layer[1, places[1]], dim=0).item() for layer in layers]
    for number, cosine in enumerate(cosines):
        print(f"{'characters' if number == 0 else f'LSTM {number}':<12}{cosine:6.3f}")
    return cosines


if __name__ == "__main__":
    main(*sys.argv[1:])
