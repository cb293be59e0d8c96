"""How well a language model expects sentences, and which words it would rather put at a place.

A biLM gives each word two distributions, from its left and from its right context. Their normalised product is the
distribution behind the pseudo log-likelihood and behind `lexical_substitutes`. Every sentence begins from zero states.

Letters: B sentences, T words of the longest, N positions, P features, V classes.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging

from ..modeling.modeling_elmo import ElmoForPreTraining
from ..modeling.softmax_loss import BUFFER
from ..modeling.vocabulary_softmax import log_probabilities
from ..training.checkpoints import load_whole, open_checkpoint
from ..training.data import split_words
from ..training.text_files import open_shards, refuse_column
from .lines import new_text_file, one_line, read_standard_input, refuse_existing
from .quiet import quiet_libraries

CHUNK = 2048  # sentences of a file that are held, and sorted by length
HEADER = ("forward", "backward", "pseudo", "targets", "unknown", "sentence")


@dataclass(frozen=True)
class Scores:
    """Log-likelihoods of one sentence, sums in nats.

    Args:
        forward: log p(w1 .. wn, end), each given those on its left.
        backward: log p(wn .. w1, begin), each given those on its right; None for a model of one direction.
        pseudo: sum over the n words of log p(w | left and right context); None for a model of one direction.
        targets: n + 1, of each direction; `pseudo` has n.
        unknown: words among them that the model only knows as its unknown word.
    """

    forward: float
    backward: float | None
    pseudo: float | None
    targets: int
    unknown: int


def score_sentences(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    sentences: Sequence[str] | Sequence[Sequence[str]],
    batch_size: int = 32,
) -> list[Scores]:
    """Score sentences, each on its own.

    Args:
        model: `ElmoForPreTraining`, or `LstmLMForCausalLM`.
        tokenizer: the model's.
        sentences: texts, which the tokenizer splits; or lists of words. A sentence may be empty: then only its end counts.
            Lists of words are joined by spaces for an LSTM LM, whose tokenizer may have no words.
        batch_size: sentences at a time, of similar lengths.

    Returns:
        Scores in the order of the sentences. They do not depend on batch mates.

    Raises:
        ValueError: a single text, a model without a softmax or of another kind, or a tokenizer of another model.
    """
    if isinstance(sentences, str):
        raise ValueError(f"sentences must be a list, found the text {sentences[:40]!r}. Put it into a list.")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, found {batch_size}. Raise it.")
    score_batch, rows = _scorer(model, tokenizer, sentences)
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    scores = {}
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            found = score_batch(model, tokenizer, [rows[number] for number in numbers])
            scores |= dict(zip(numbers, found, strict=True))
    return [scores[number] for number in range(len(rows))]


def lexical_substitutes(
    model: ElmoForPreTraining, tokenizer: Tokenizer, words: Sequence[str], index: int, k: int = 10
) -> list[tuple[str, float]]:
    """The words that a biLM expects most at a place, by the normalised product of both directions.

    The word that stands there is not seen by the model, and is listed like any other if it is among the most probable.
    Probabilities are those over the whole vocabulary; `<S>`, `</S>` and `<UNK>` have some of it, but are not listed.

    Args:
        model: ELMo with its softmax.
        tokenizer: the model's.
        words: a sentence.
        index: the place, 0 is the first word.
        k: how many words.

    Returns:
        Words and their probabilities, the most probable first.

    Raises:
        ValueError: no words, a place outside the sentence, k below 1, a model without a softmax, or a tokenizer of another
            model.
    """
    _check_elmo(model, tokenizer)
    if isinstance(words, str) or not len(words):
        raise ValueError(
            f"words must be a list of one word at least, found {words!r}. Split the sentence first, "
            "e.g. tokenizer.tokenize(text)."
        )
    if not 0 <= index < len(words):
        raise ValueError(f"index must lie in 0..{len(words) - 1} for {len(words)} words, found {index}.")
    if k < 1:
        raise ValueError(f"k must be 1 or more, found {k}. Raise it.")
    with evaluating(model):
        hidden, mask, _ = _read(model, tokenizer, [list(words)])
        left, right = _contexts(hidden, mask)
        both = _log_probabilities(model, left[index : index + 1]) + _log_probabilities(
            model, right[index : index + 1]
        )
    both = both.log_softmax(1)[0]  # (V,)
    config = model.config
    special = {config.pad_token_id, config.bos_token_id, config.eos_token_id, tokenizer.unk_token_id}
    best = both.topk(min(len(both), k + len(special)))
    found = zip(best.indices.tolist(), best.values.exp().tolist(), strict=True)
    kept = [(token, probability) for token, probability in found if token not in special][:k]
    names = tokenizer.convert_ids_to_tokens([token for token, _ in kept])
    return list(zip(names, [probability for _, probability in kept], strict=True))


@contextlib.contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients, and the former mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _scorer(model, tokenizer, sentences):
    """What scores a batch, and the sentences as it wants them: words for ELMo, ids for an LSTM LM."""
    kind = model.config.model_type
    if kind == "elmo":
        _check_elmo(model, tokenizer)
        return _score_elmo, [split_words(sentence, tokenizer, False) for sentence in sentences]
    if not hasattr(model, "token_scores"):
        raise ValueError(
            f"{type(model).__name__} ({kind}) cannot be scored; expected ElmoForPreTraining or LstmLMForCausalLM."
        )
    if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
        raise ValueError(
            "the tokenizer has no bos_token or no eos_token, so nothing begins or ends a sentence. Set both, as "
            "heirloom train-tokenizer does."
        )
    texts = [sentence if isinstance(sentence, str) else " ".join(sentence) for sentence in sentences]
    return _score_lstm_lm, tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _check_elmo(model, tokenizer) -> None:
    if model.config.model_type != "elmo" or not hasattr(model, "softmax"):
        raise ValueError(
            f"{type(model).__name__} holds no softmax over words; ElmoForPreTraining is expected. Convert the original "
            "with --softmax, or load what heirloom pretrain wrote with AutoModelForPreTraining."
        )
    if tokenizer.vocab_size != model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} word ids, but the softmax has {model.config.vocab_size}. Use the "
            "tokenizer of this model; if it knows no words, convert again with --vocab."
        )


def _read(model, tokenizer, sentences: list[list[str]]) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (B, T + 2, 2 P) of sentences with `<S>` and `</S>`, their mask and their word ids (B, T + 2)."""
    batch = tokenizer(
        sentences, is_split_into_words=True, padding=True, padding_side="right", return_tensors="pt"
    )
    batch = batch.to(model.device)
    outputs = model.elmo(**batch, keep_boundaries=True)
    mask, lengths = outputs.attention_mask, batch["attention_mask"].sum(1, keepdim=True)
    ids = torch.nn.functional.pad(batch["input_ids"], (1, 1), value=model.config.bos_token_id)
    ids.scatter_(1, lengths + 1, model.config.eos_token_id)
    return outputs.last_hidden_state, mask, ids


def _contexts(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What is known from the left and from the right of every word: (N, P) each."""
    left, right = hidden.chunk(2, -1)
    inner = mask[:, 2:]
    return left[:, :-2][inner], right[:, 2:][inner]


def _log_probabilities(model, hidden: Tensor) -> Tensor:
    """(N, V) from (N, P), -inf at padding."""
    return log_probabilities(model.softmax, hidden, skip=1)


def _blocks(positions: int, classes: int) -> Iterator[slice]:
    size = max(1, BUFFER // classes)
    return (slice(start, start + size) for start in range(0, positions, size))


def _score_elmo(model, tokenizer, sentences: list[list[str]]) -> list[Scores]:
    hidden, mask, ids = _read(model, tokenizer, sentences)
    half, classes = hidden.shape[2] // 2, model.config.vocab_size
    rows, lengths = torch.arange(len(sentences), device=ids.device), mask.sum(1) - 2  # (B,)
    sums = torch.zeros(3, len(sentences), dtype=torch.float64, device=ids.device)  # forward, backward, pseudo
    left, right = _contexts(hidden, mask)
    targets, owners = ids[:, 1:-1][mask[:, 2:]].unsqueeze(1), rows.repeat_interleave(lengths)
    for part in _blocks(len(targets), classes):
        forward, backward = (_log_probabilities(model, side[part]) for side in (left, right))
        scores = [logs.gather(1, targets[part]).squeeze(1).double() for logs in (forward, backward)]
        scores.append(scores[0] + scores[1] - forward.add_(backward).logsumexp(1))
        sums.index_add_(1, owners[part], torch.stack(scores))
    ends = hidden[rows, lengths, :half], hidden[:, 1, half:]  # what expects `</S>`, and `<S>`
    for part in _blocks(len(rows), classes):
        marks = model.config.eos_token_id, model.config.bos_token_id
        for direction, (end, mark) in enumerate(zip(ends, marks, strict=True)):
            sums[direction, part] += _log_probabilities(model, end[part])[:, mark]
    unknown = torch.zeros_like(rows).index_add_(0, owners, (targets[:, 0] == tokenizer.unk_token_id).long())
    columns = (*sums.tolist(), (lengths + 1).tolist(), unknown.tolist())
    return [Scores(*values) for values in zip(*columns, strict=True)]


def _score_lstm_lm(model, tokenizer, rows: list[list[int]]) -> list[Scores]:
    begin, end, unknown = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    lengths = torch.tensor([len(row) + 2 for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # (B, T + 2)
    ids = torch.zeros_like(mask, dtype=torch.long)
    ids[mask] = torch.tensor([token for row in rows for token in (begin, *row, end)])
    ids, mask = ids.to(model.device), mask.long().to(model.device)
    sums = model.token_scores(ids, mask).double().sum(1).tolist()
    return [
        Scores(total, None, None, len(row) + 1, row.count(unknown))
        for total, row in zip(sums, rows, strict=True)
    ]


def score_file(
    checkpoint: str,
    source: str,
    output: Path | None = None,
    batch_size: int = 32,
    tokenized: bool = False,
    text_column: str | None = None,
) -> list[str]:
    """Score a file's sentences into a table of tab-separated values, in the file's order and in little memory.

    Args:
        checkpoint: ELMo with a softmax, or an LSTM LM; folder or Hub name.
        source: whatever `open_shards` opens, or "-" for standard input.
        output: the file to write, must not exist; None means standard output.
        batch_size: sentences at a time.
        tokenized: words stand between spaces; by default the tokenizer splits the text.
        text_column: column of a table.

    Returns:
        A summary: lines with perplexity and mean log-likelihood of each direction, and unknown words. Blank sentences
        have a line of zeros in the table, and do not count.

    Raises:
        FileExistsError: the output exists.
        FileNotFoundError: no such checkpoint, input or output folder.
        ValueError: another model, no words, or a text that is no UTF-8.
    """
    refuse_existing(output)
    sentences = _sentences(source, text_column)
    with quiet_libraries():
        model, tokenizer = load(checkpoint)
    totals = _Totals(two_directions=model.config.model_type == "elmo")
    with (
        new_text_file(output) as table,
        logging.tqdm(desc="Scoring", unit=" sentences", disable=output is None) as bar,
    ):
        table.write("\t".join(HEADER) + "\n")
        while chunk := list(islice(sentences, CHUNK)):
            known = [
                row.split() if tokenized and isinstance(row, str) else row for row in chunk if _words(row)
            ]
            scores = iter(score_sentences(model, tokenizer, known, batch_size))
            for row in chunk:
                found = next(scores) if _words(row) else totals.nothing
                totals.add(found)
                table.write("\t".join((*_cells(found), _line(row))) + "\n")
            bar.update(len(chunk))
        if not totals.targets:
            raise ValueError(f"{source} holds no words. One sentence a line is expected.")
    return totals.summary()


def load(checkpoint: str) -> tuple[PreTrainedModel, Tokenizer]:
    """A model that can be scored, in evaluation mode, and its tokenizer.

    Args:
        checkpoint: folder or Hub name.

    Returns:
        `ElmoForPreTraining` or `LstmLMForCausalLM`, and its tokenizer.

    Raises:
        FileNotFoundError: a folder without a config.json, or no such folder.
        ValueError: another model, an ELMo without a softmax, or weights that are not whole.
    """
    is_folder = Path(checkpoint).exists() or checkpoint.startswith((".", "/"))
    kind = None
    if not is_folder or (Path(checkpoint) / "config.json").is_file():
        kind = AutoConfig.from_pretrained(checkpoint).model_type
    if kind == "lstm-lm":
        return load_whole(AutoModelForCausalLM, checkpoint), _tokenizer(checkpoint)
    if kind not in (None, "elmo"):
        raise ValueError(
            f"{checkpoint} is a {kind} checkpoint; ELMo with its softmax or lstm-lm is expected."
        )
    config, tokenizer = open_checkpoint(checkpoint)
    if "ElmoForPreTraining" not in (config.architectures or []):
        raise ValueError(
            f"{checkpoint} holds no softmax over words: its class is {config.architectures}. Convert the original with "
            "--softmax, or name what heirloom pretrain wrote."
        )
    model = load_whole(ElmoForPreTraining, checkpoint)
    _check_elmo(model, tokenizer)
    return model, tokenizer


def _tokenizer(checkpoint: str) -> Tokenizer:
    try:
        return AutoTokenizer.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{checkpoint} holds no tokenizer that can be read ({str(error).splitlines()[0]}). Save the model's own into it: "
            f"tokenizer.save_pretrained({checkpoint!r})"
        ) from error


class _Totals:
    """Sums over a file."""

    def __init__(self, two_directions: bool):
        zero = 0.0 if two_directions else None
        self.nothing = Scores(0.0, zero, zero, 0, 0)
        self.sums = {"forward": 0.0, "backward": zero, "pseudo": zero}
        self.sentences = self.targets = self.unknown = 0

    def add(self, scores: Scores) -> None:
        for name, total in self.sums.items():
            if total is not None:
                self.sums[name] = total + getattr(scores, name)
        self.sentences += scores.targets > 0
        self.targets, self.unknown = self.targets + scores.targets, self.unknown + scores.unknown

    def summary(self) -> list[str]:
        words, lines = self.targets - self.sentences, []
        for name, total in self.sums.items():
            count = words if name == "pseudo" else self.targets
            if total is not None and count:
                mean = total / count
                lines.append(
                    f"{name:<8}  perplexity {math.exp(-mean):,.3f}  {mean:.4f} nats a target  {count:,} targets"
                )
        share = self.unknown / words if words else 0.0
        return [
            *lines,
            f"unknown   {self.unknown:,} of {words:,} words ({share:.2%}) in {self.sentences:,} sentences",
        ]


def _words(row: str | Sequence[str]) -> bool:
    return bool(row) and not (isinstance(row, str) and row.isspace())


def _cells(scores: Scores) -> list[str]:
    numbers = (scores.forward, scores.backward, scores.pseudo)
    return [
        *("" if number is None else f"{number:.6f}" for number in numbers),
        str(scores.targets),
        str(scores.unknown),
    ]


def _line(row: str | Sequence[str]) -> str:
    return one_line(row if isinstance(row, str) else " ".join(row))


def _sentences(source: str, text_column: str | None) -> Iterator[str | list[str]]:
    """The rows of a source, blank ones included."""
    if source == "-":
        refuse_column(text_column, "standard input")
        return read_standard_input()
    shards = open_shards(source, text_column, keep_blank=True)
    return (row for shard in shards for row in shard)


__all__ = ["Scores", "lexical_substitutes", "load", "score_file", "score_sentences"]
