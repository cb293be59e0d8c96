"""The readable twin of zero-shot scores: one candidate, one token at a time, over the model's own last logits."""

import torch


def log_probability(model, shared: list[int], own: list[int]) -> float:
    """log p(own | shared), each token behind a row of its own."""
    total, row = 0.0, list(shared)
    for token in own:
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0, -1]
        total += logits.double().log_softmax(0)[token].item()
        row.append(token)
    return total


def score(
    model, tokenizer, context: str, candidate: str, normalization: str, unconditional="Answer:"
) -> float:
    """Where no token goes over the border between context and candidate, which a space marks."""

    def encoded(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def behind(text):
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if tokenizer.bos_token_id is None and text:
            return log_probability(model, encoded(text), own)
        return log_probability(model, [begin, *encoded(text)], own)

    own = encoded(f"{context} {candidate}")[len(encoded(context)) :]
    total = behind(context)
    if normalization == "mean":
        return total / len(own)
    return total - behind(unconditional) if normalization == "pmi" else total
