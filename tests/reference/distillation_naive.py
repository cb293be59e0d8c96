"""The readable twin of distillation: one row without padding, one target, one word of the vocabulary at a time."""

import torch


def target_loss(student, teacher, label: int, temperature: float) -> tuple:
    """T^2 KL(teacher || student) and cross-entropy of one target; logits (V,)."""
    now = torch.stack([torch.exp(one / temperature) for one in student])
    before = torch.stack([torch.exp(one / temperature) for one in teacher])
    now, before = now / now.sum(), before / before.sum()
    divergence = sum(p * torch.log(p / q) for p, q in zip(before, now, strict=True))
    chances = torch.exp(student) / torch.exp(student).sum()
    return temperature**2 * divergence, -torch.log(chances[label])


def step_loss(student, teacher, batch: dict, causal: bool, temperature: float) -> dict:
    """Means of `kl_loss`, the hard loss and `cosine_loss` over a batch with padding at the right."""
    soft, hard, cosines = [], [], []
    for number, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        row, labels = batch["input_ids"][number : number + 1, :length], batch["labels"][number].tolist()
        found = student(row, output_hidden_states=True)
        with torch.no_grad():
            taught = teacher(row, output_hidden_states=True)
        for place in range(length):
            one, other = found.hidden_states[-1][0, place], taught.hidden_states[-1][0, place]
            cosines.append(1 - one @ other / (one.norm() * other.norm()))
            target = place + 1 if causal else place
            if target < length and labels[target] != -100:
                pair = target_loss(
                    found.logits[0, place], taught.logits[0, place], labels[target], temperature
                )
                soft.append(pair[0])
                hard.append(pair[1])
    return {
        "kl_loss": sum(soft) / len(soft),
        "hard": sum(hard) / len(hard),
        "cosine_loss": sum(cosines) / len(cosines),
    }


def mean_square(student, teacher, batch: dict, causal: bool) -> torch.Tensor:
    """Mean over the targets of the mean over the vocabulary of squared differences of logits; arguments as above."""
    squares = []
    for number, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        row, labels = batch["input_ids"][number : number + 1, :length], batch["labels"][number].tolist()
        found = student(row).logits[0]
        with torch.no_grad():
            taught = teacher(row).logits[0]
        for place in range(length):
            target = place + 1 if causal else place
            if target < length and labels[target] != -100:
                pairs = zip(found[place], taught[place], strict=True)
                squares.append(sum((one - other) ** 2 for one, other in pairs) / found.shape[1])
    return sum(squares) / len(squares)
