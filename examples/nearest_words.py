"""Vectors of words from a fresh biLM, and the words nearest to them: python examples/nearest_words.py"""

# %% [markdown]
# # Vectors of words, and their nearest words
#
# A small ELMo biLM learns from made-up sentences. It sees no meanings, only which words stand beside which. Afterwards words
# that are used alike have vectors that are alike, and one spelling has different vectors in different sentences.

# %%
import os
import random

import torch
from torch.nn.functional import normalize

from heirloom import ElmoConfig, ElmoForPreTraining, ElmoTokenizer, lexical_substitutes

STEPS = int(os.environ.get("STEPS", "200"))  # a few are enough to see that everything runs
random.seed(0)
torch.manual_seed(0)

# %% [markdown]
# Three kinds of sentences. "bank" is a place in one kind and lies at a river in another.

# %%
KINDS = [
    ("the", ["cat", "dog", "fox"], ["eats", "likes"], "the", ["fish", "bread", "rice"]),
    ("a", ["train", "bus", "tram"], ["leaves", "reaches"], "the", ["station", "bank"]),
    ("the", ["boat", "swan", "duck"], ["lies", "sleeps"], "by the", ["river bank", "lake"]),
]


def sentence() -> list[str]:
    """One sentence of a kind chosen at random."""
    parts = [part if isinstance(part, str) else random.choice(part) for part in random.choice(KINDS)]
    return " ".join([*parts, "."]).split()


words = [sentence() for _ in range(400)]
tokenizer = ElmoTokenizer.from_words(
    sorted({word for row in words for word in row}), max_characters_per_token=12
)
model = ElmoForPreTraining(
    ElmoConfig(
        vocab_size=tokenizer.vocab_size,
        max_characters_per_token=12,
        char_embedding_size=8,
        char_filters=[[1, 8], [2, 16], [3, 16]],
        projection_size=24,
        cell_size=48,
    )
)

# %% [markdown]
# The loss is that of both directions; `labels` are the words themselves.

# %%
optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
losses = []
for _ in range(STEPS):
    rows = random.sample(words, 16)
    batch = tokenizer(rows, is_split_into_words=True, padding=True, return_tensors="pt")
    longest = max(map(len, rows))
    ids = [tokenizer.convert_tokens_to_ids(row) + [0] * (longest - len(row)) for row in rows]
    loss = model(char_ids=batch["char_ids"], labels=torch.tensor(ids)).loss
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"perplexity: {2.718 ** losses[0]:.1f} before, {2.718 ** losses[-1]:.1f} after {STEPS} steps")

# %% [markdown]
# A word's vector is the mean over its places in the text, layers averaged. The nearest ones by cosine:

# %%
model.eval()
places: dict[str, list[torch.Tensor]] = {}
for row in words[:100]:
    with torch.no_grad():
        batch = tokenizer([row], is_split_into_words=True, return_tensors="pt")
        layers = model.elmo(char_ids=batch["char_ids"], output_hidden_states=True).hidden_states
    for word, vector in zip(row, torch.stack(layers).mean(0)[0], strict=True):
        places.setdefault(word, []).append(vector)
names = sorted(places)
vectors = normalize(torch.stack([torch.stack(places[name]).mean(0) for name in names]), dim=1)
nearest = {}
for name in ("cat", "train", "river"):
    order = (vectors @ vectors[names.index(name)]).argsort(descending=True).tolist()
    nearest[name] = [names[place] for place in order[1:4]]
    print(f"{name}: {', '.join(nearest[name])}")

# %% [markdown]
# The biLM can also say which words it expects at a place, by what stands on both sides:

# %%
substitutes = lexical_substitutes(model, tokenizer, ["the", "cat", "eats", "the", "fish", "."], index=1, k=3)
print(substitutes)
