"""The readable twin of the joint-loss models: one row at a time and without padding, the language model's loss by its own
`labels`, the task's by a separate head on vectors that the stock base model returns.

Also the tiny language models of its tests, with weights so large that every position matters.
"""

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from heirloom.modeling.configuration_elmo import ElmoConfig
from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_elmo import ElmoForPreTraining
from heirloom.modeling.modeling_joint_loss import (
    JointLossForMultipleChoice,
    JointLossForSequenceClassification,
    JointLossForSimilarity,
    JointLossForTokenClassification,
)
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM

VOCAB, MASK, POSITIONS = 40, 39, 24
GPT = {"vocab_size": VOCAB, "n_positions": POSITIONS, "n_embd": 16, "n_layer": 2, "n_head": 2}
QUIET = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.3}
BODY = {"vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
BODY |= {"num_attention_heads": 2, "initializer_range": 0.3}
BERTS = BODY | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
WORDS = {"char_filters": [], "char_embedding_size": 0, "word_embedding_size": 8, "projection_size": 8}
LSTM = {"embedding_size": 8, "cell_size": 12, "num_hidden_layers": 2, "initializer_range": 0.6}

KINDS = {  # tied and untied heads, learned and rotary positions, and none
    "gpt2": (GPT2LMHeadModel, GPT2Config, GPT | QUIET | {"bos_token_id": 1, "eos_token_id": 1}),
    "openai-gpt": (OpenAIGPTLMHeadModel, OpenAIGPTConfig, GPT | QUIET),
    "llama": (LlamaForCausalLM, LlamaConfig, BODY | {"max_position_embeddings": POSITIONS}),
    "bert": (BertForMaskedLM, BertConfig, BERTS | {"max_position_embeddings": POSITIONS}),
    "roberta": (RobertaForMaskedLM, RobertaConfig, BERTS | {"max_position_embeddings": POSITIONS + 2}),
    "lstm-lm": (LstmLMForCausalLM, LstmLMConfig, LSTM | {"vocab_size": VOCAB, "dropout": 0.0}),
    "elmo": (ElmoForPreTraining, ElmoConfig, WORDS | {"vocab_size": VOCAB, "cell_size": 12, "dropout": 0.0}),
}
HEADS = {
    "classes": JointLossForSequenceClassification,
    "similarity": JointLossForSimilarity,
    "choices": JointLossForMultipleChoice,
    "tokens": JointLossForTokenClassification,
}


def language_model(kind: str, **changes):
    """A tiny language model with random weights, in evaluation mode."""
    model_class, config_class, sizes = KINDS[kind]
    torch.manual_seed(1)
    model = model_class(config_class(**sizes | changes)).eval()
    if kind == "elmo":
        for parameter in model.parameters():
            torch.nn.init.uniform_(parameter, -0.6, 0.6)
    return model


def joint(kind: str, head: str = "classes", dtype=torch.float64, backbone=None, **options):
    """A joint-loss model on it, its classifier far from its initial values, without dropout."""
    options = {"num_labels": 3, "classifier_dropout": 0.0} | options
    model = HEADS[head].from_backbone_pretrained(language_model(kind, **(backbone or {})), **options)
    torch.manual_seed(2)
    for parameter in model.classifier.parameters():
        torch.nn.init.normal_(parameter)
    return model.to(dtype)


def examples(head: str, count: int = 6) -> tuple[list[list[list[int]]], list]:
    """Texts (each example a list of rows of token ids, of very different lengths) and labels, some of them -100."""
    draw = torch.Generator().manual_seed(3)
    texts, labels = [], []
    for number in range(count):
        rows = []
        for view in range({"similarity": 2, "choices": 3}.get(head, 1)):
            length = 3 + (5 * number + 2 * view) % 9
            rows.append(torch.randint(5, MASK, (length,), generator=draw).tolist())
        texts.append(rows)
        whole = [(number + place) % 3 for place in range(len(rows[0]))]
        whole[1] = -100
        labels.append(whole if head == "tokens" else number % 3)
    labels[2] = [-100] * len(labels[2]) if head == "tokens" else -100
    return texts, labels


def pad(rows: list[list[int]], fill: int, width: int, left: bool = False) -> Tensor:
    """(N, width) from rows."""
    more = [[fill] * (width - len(row)) for row in rows]
    return torch.tensor([(one + row) if left else (row + one) for row, one in zip(rows, more, strict=True)])


def batch(kind: str, head: str, texts, labels, left: bool = False) -> dict[str, Tensor]:
    """Keyword arguments of `forward`; for masked models every third token is hidden and a target."""
    flat = [row for rows in texts for row in rows]
    width, middle = max(map(len, flat)), ([] if head in ("classes", "tokens") else [len(texts[0])])
    shape = (len(texts), *middle, width)
    made = {
        "input_ids": pad([hidden_row(kind, row) for row in flat], 0, width, left),
        "attention_mask": pad([[1] * len(row) for row in flat], 0, width, left),
    }
    if kind in ("bert", "roberta"):
        made["lm_targets"] = pad([target_row(kind, row) for row in flat], -100, width, left)
    made = {name: tensor.view(shape) for name, tensor in made.items()}
    made["labels"] = pad(labels, -100, width, left) if head == "tokens" else torch.tensor(labels)
    return made


def hidden_row(kind: str, row: list[int]) -> list[int]:
    """What the model reads."""
    if kind not in ("bert", "roberta"):
        return row
    return [MASK if place % 3 == 1 else token for place, token in enumerate(row)]


def target_row(kind: str, row: list[int]) -> list[int]:
    """What it has to predict."""
    if kind not in ("bert", "roberta"):
        return row
    return [token if place % 3 == 1 else -100 for place, token in enumerate(row)]


def vectors(model, row: list[int]) -> Tensor:
    """(T, H) of one row by the base model."""
    return model.language_model.base_model(torch.tensor([row])).last_hidden_state[0]


def naive_lm_loss(model, kind: str, texts, skip=()) -> Tensor:
    """Mean loss of the language model over rows or targets, by its own `labels`."""
    means, counts = [], []
    for number, rows in enumerate(texts):
        for row in rows if number not in skip else ():
            targets = target_row(kind, row)
            loss = model.language_model(
                input_ids=torch.tensor([hidden_row(kind, row)]), labels=torch.tensor([targets])
            ).loss
            known = sum(target != -100 for target in targets)
            shift = {"bert": 0, "roberta": 0, "elmo": -1}.get(
                kind, 1
            )  # no first token; one sentence mark more
            means.append(loss)
            counts.append(known - shift)
    if model.config.lm_loss_reduction == "example":
        return sum(means) / len(means)
    return sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)


def naive_logits(model, kind: str, head: str, rows: list[list[int]]) -> Tensor:
    """(K,), of tokens (T, K), of choices (C,): one example's."""
    weight, bias = model.classifier.weight, model.classifier.bias
    read = [vectors(model, hidden_row(kind, row)) for row in rows]
    if head == "tokens":
        return read[0] @ weight.T + bias
    pooled = [{"last": one[-1], "first": one[0], "mean": one.mean(0)}[model.config.pooling] for one in read]
    if head == "choices":
        return torch.stack([(weight @ one + bias)[0] for one in pooled])
    return weight @ sum(pooled) + bias


def naive_task_loss(model, kind: str, head: str, texts, labels) -> Tensor:
    """Mean cross-entropy over what is labelled."""
    losses = []
    for rows, label in zip(texts, labels, strict=True):
        logits = naive_logits(model, kind, head, rows)
        pairs = zip(logits, label, strict=True) if head == "tokens" else [(logits, label)]
        losses += [-one.log_softmax(0)[known] for one, known in pairs if known != -100]
    return sum(losses) / len(losses)


def gradients(model) -> dict[str, Tensor]:
    """All gradients by name; zeros for what has none. They are cleared."""
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }
    model.zero_grad()
    return found


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Over tensors of the same names, in units of the largest number among them where that is above 1."""
    assert one.keys() == other.keys()
    unit = max(1.0, max(value.abs().max().item() for value in other.values()))
    return max((one[name] - other[name]).abs().max().item() for name in one) / unit


def tokenizer(folder, **marks):
    """A tokenizer of as many words, saved in a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{number}" for number in range(3, VOCAB))]
    backend = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **marks)
    made.save_pretrained(folder)
    return made
