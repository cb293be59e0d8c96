"""Two language models become a translator: python examples/translator.py"""

# %% [markdown]
# # Two language models become a translator
#
# Ramachandran, Liu & Le 2017: the encoder begins as a language model of the source, the decoder as one of the target, and both
# language models go on training beside the translation. The languages here are numbers in English and, in reverse order, in
# German.

# %%
import os
import random

import torch
from torch.nn.utils.rnn import pad_sequence

from heirloom import LstmLMConfig, LstmLMForCausalLM, LstmSeq2SeqForConditionalGeneration

STEPS = int(os.environ.get("STEPS", "300"))  # a few are enough to see that everything runs
random.seed(0)
torch.manual_seed(0)
OPTIONS = {"dropout": 0.0, "initializer_range": 0.3}  # so small a model learns slowly from smaller weights
ENGLISH = ["<pad>", "<eos>", "one", "two", "three", "four", "five", "six", "seven", "eight"]
GERMAN = ["<pad>", "<eos>", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht"]


def numbers(rows: int) -> list[list[int]]:
    """Rows of two to four ids, the same in both languages."""
    return [random.choices(range(2, 10), k=random.randint(2, 4)) for _ in range(rows)]


def padded(rows: list[list[int]], padding: int = 0) -> torch.Tensor:
    """Ids of all rows, (B, T)."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=padding)


def text(rows: list[list[int]]) -> torch.Tensor:
    """Sentences as language models read them: `<eos> w1 .. wn <eos>`."""
    return padded([[1, *row, 1] for row in rows])


def train(model, batches, rate=0.01) -> list[float]:
    """Losses of as many steps as there are batches."""
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=rate), []
    model.train()
    for batch in batches:
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


# %% [markdown]
# A language model of each side, with one layer and equal sizes.

# %%
language_models = []
for _ in range(2):
    lm = LstmLMForCausalLM(LstmLMConfig(vocab_size=10, embedding_size=32, cell_size=32, **OPTIONS))
    rows = (text(numbers(16)) for _ in range(STEPS // 3))
    train(lm, ({"input_ids": ids, "attention_mask": ids != 0, "labels": ids} for ids in rows))
    language_models.append(lm)

# %% [markdown]
# The table says where each parameter comes from. `encoder_vocab_size` keeps the two vocabularies apart.

# %%
options = {"encoder_vocab_size": 10, "num_hidden_layers": 2, **OPTIONS}
translator = LstmSeq2SeqForConditionalGeneration.from_language_models(*language_models, **options)

# %% [markdown]
# Pairs and monolingual text in one batch: the loss is seq2seq + source LM + target LM.


# %%
def joint_batch() -> dict:
    """16 pairs, and 16 sentences of each side."""
    rows, batch = numbers(16), {}
    batch["input_ids"] = text(rows)
    batch["labels"] = padded([[*reversed(row), 1] for row in rows], -100)
    for side in ("source", "target"):
        ids = text(numbers(16))
        batch |= {f"{side}_lm_input_ids": ids, f"{side}_lm_attention_mask": ids != 0}
    return batch | {"attention_mask": batch["input_ids"] != 0}


losses = train(translator, (joint_batch() for _ in range(STEPS)))
print(f"loss: {losses[0]:.2f} before, {losses[-1]:.2f} after {STEPS} steps")

# %%
answers = []
for row in numbers(3):
    found = translator.generate(torch.tensor([[1, *row, 1]]), num_beams=2, max_new_tokens=6)[0].tolist()
    answers.append((row, [token for token in found if token > 1]))
    print(
        " ".join(ENGLISH[token] for token in row), "->", " ".join(GERMAN[token] for token in answers[-1][1])
    )
