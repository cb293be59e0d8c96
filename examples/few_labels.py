"""Few labels, with and without the language model's loss: python examples/few_labels.py"""

# %% [markdown]
# # Fine-tuning with few labels, with and without the language-model loss
#
# A GPT-2 (tiny and fresh, so that this runs in seconds) first learns a made-up language, then classes of sixteen sentences: once
# by the loss of the task alone, once by task + λ · LM (Radford et al. 2018). Both are then asked for the classes of new
# sentences and for the perplexity of the language.

# %%
import os
import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

from heirloom import InputTemplate, JointLossCollator, JointLossForSequenceClassification

STEPS = int(os.environ.get("STEPS", "150"))  # a few are enough to see that everything runs
set_seed(0)
GOOD, BAD = ["great", "lovely", "fine", "clever"], ["dull", "poor", "weak", "boring"]


def sentence(label: int) -> str:
    """A judgement, its words chosen at random."""
    thing = random.choice(["film", "book", "song", "play"])
    return (
        f"the {thing} was {random.choice(['very', 'really', 'so'])} {random.choice(GOOD if label else BAD)}"
    )


def rows(count: int) -> list[dict]:
    """Sentences of both classes."""
    return [{"text": sentence(number % 2), "label": number % 2} for number in range(count)]


words = sorted({word for row in rows(400) for word in row["text"].split()})
backend = Tokenizer(
    models.WordLevel({word: n for n, word in enumerate(["<eos>", *words])}, unk_token="<eos>")
)
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=backend, unk_token="<eos>", eos_token="<eos>", pad_token="<eos>"
)

# %% [markdown]
# The language model, from text without labels.

# %%
sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16}
language_model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def text_loss(model) -> torch.Tensor:
    """Mean loss on 32 new sentences."""
    ids = tokenizer([row["text"] for row in rows(32)], return_tensors="pt")["input_ids"]
    return model(input_ids=ids, labels=ids).loss


def train(model, loss_of_a_step, steps: int) -> None:
    """Adam on what the function returns."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.002)
    model.train()
    for _ in range(steps):
        loss = loss_of_a_step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()


train(language_model, lambda: text_loss(language_model), STEPS)
language_model.save_pretrained("gpt2-tiny")

# %% [markdown]
# The same sixteen labels for both. `InputTemplate` adds the marks around a text and the one that the classifier reads.

# %%
few, new = rows(16), rows(200)
results = {}
for weight in (0.0, 0.5):
    set_seed(1)
    template = InputTemplate(max_length=16)
    template.prepare(tokenizer)
    model = JointLossForSequenceClassification.from_backbone_pretrained(
        "gpt2-tiny", num_labels=2, lm_loss_weight=weight, **template.model_options(tokenizer)
    )
    template.prepare(tokenizer, model)
    collate = JointLossCollator(tokenizer, template, "classification")
    train(model, lambda model=model, collate=collate: model(**collate(few)).loss, STEPS)
    with torch.no_grad():
        batch = collate(new)
        right = model(**batch).logits.argmax(-1) == batch["labels"]
        perplexity = text_loss(model.language_model).exp().item()
    results[weight] = right.float().mean().item(), perplexity
    print(f"lambda {weight}: accuracy {results[weight][0]:.2f}, perplexity of the language {perplexity:.1f}")
