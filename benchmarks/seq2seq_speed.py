"""Speed of training and decoding the LSTM encoder-decoder, side by side with a plain one and with a Transformer.

    OMP_NUM_THREADS=1 python benchmarks/seq2seq_speed.py [--sizes small|paper-shaped] [--repeats N] [--json OUT]

The systems, in float32 with separate vocabularies: plain is `nn.LSTM` twice a side, dot attention over the last layer, and
loops for greedy and beam search that keep the state, in this file, the yardstick; ours is heirloom's with all that the
paper adds (first-layer attention, residual), decoded by the stock `generate()`; Transformer is Transformers' Marian with as
many layers, d_model and feed-forward size solved so that it has the parameters of plain, decoded by `generate()` too.
Parameters of ours are counted without the source's softmax, which only the language-model loss reads.

Training: forward, backward and AdamW on pairs as long as those of Multi30k (words and punctuation of
../shared/data/multi30k; without it drawn around 14), of random words. "With LM batches" adds as many sentences of each
side's text to every step; its tokens a second are still those of the targets, so that all rows compare. Decoding: batches
of sentences, 14 tokens each: untrained models do not know when to stop, so a bias makes the end impossible, which costs
nothing (min_new_tokens would copy all logits at every step). The plain loops check no input and keep no account of finished
sentences; generate() does both.

Every repeat runs all systems in turn on the same batches; numbers are medians over the repeats of processor time, which a
busy machine disturbs least. In parentheses: divided by that of plain.

Letters: B rows, S source positions, T target positions, K beams, V words, E embedding, D cells and P outputs of the first
layer, U units of the layers above, L layers a side.
"""

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
import transformers
from tokenizer_speed import processor
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import MarianConfig, MarianMTModel

from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration

PAD, EOS, FIRST_WORD = 0, 1, 2
TOKENS = 14  # that every decoded sentence gets
LONGEST = 100
SIZES = {
    "small": {"vocab_size": 4000, "embedding_size": 128, "cell_size": 256, "upper_size": 256},
    "paper-shaped": {
        "vocab_size": 8000,
        "embedding_size": 512,
        "cell_size": 1024,
        "projection_size": 512,
        "upper_size": 512,
        "num_hidden_layers": 3,
    },
}
TEXTS = Path(__file__).resolve().parents[2] / "shared" / "data" / "multi30k"
PLAIN, OURS, JOINT, TRANSFORMER = "plain nn.LSTM", "ours", "ours, with LM batches", "Transformer (Marian)"


class PlainSeq2Seq(nn.Module):
    """An encoder-decoder as one writes it in an afternoon.

    Args:
        config: whose sizes it has; it knows neither residual nor first-layer attention.
    """

    def __init__(self, config: LstmSeq2SeqConfig):
        super().__init__()
        first = config.embedding_size, config.cell_size
        upper = config.hidden_size, config.upper_size, config.num_hidden_layers - 1
        projection, dropout = config.projection_size or 0, config.dropout
        between = dropout if config.num_hidden_layers > 2 else 0.0
        self.drop = nn.Dropout(dropout)
        self.source_words = nn.Embedding(config.source_vocab_size, config.embedding_size)
        self.encoder_first = nn.LSTM(*first, batch_first=True, proj_size=projection)
        self.encoder_upper = nn.LSTM(*upper, batch_first=True, dropout=between)
        self.target_words = nn.Embedding(config.vocab_size, config.embedding_size)
        self.decoder_first = nn.LSTM(*first, batch_first=True, proj_size=projection)
        self.decoder_upper = nn.LSTM(*upper, batch_first=True, dropout=between)
        self.combine = nn.Linear(2 * config.upper_size, config.hidden_size)
        self.softmax = nn.Linear(config.hidden_size, config.vocab_size)

    def encode(self, source: Tensor, mask: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Outputs (B, S, U) of sources padded on the right (B, S), and h and c (L - 1, B, U) of the upper layers."""
        packed = pack_padded_sequence(
            self.drop(self.source_words(source)), mask.sum(1), batch_first=True, enforce_sorted=False
        )
        packed, _ = self.encoder_first(packed)
        packed, state = self.encoder_upper(packed._replace(data=self.drop(packed.data)))
        return pad_packed_sequence(packed, batch_first=True)[0], state

    def decode(
        self, words: Tensor, memory: Tensor, mask: Tensor, first, upper
    ) -> tuple[Tensor, tuple, tuple]:
        """Logits (B, T, V) after words (B, T), and the states of the first and the upper layers."""
        hidden, first = self.decoder_first(self.drop(self.target_words(words)), first)
        hidden, upper = self.decoder_upper(self.drop(hidden), upper)
        scores = hidden @ memory.transpose(1, 2)  # (B, T, S)
        weights = scores.masked_fill(mask[:, None] == 0, -torch.inf).softmax(2)
        output = self.combine(self.drop(torch.cat([hidden, weights @ memory], 2))).tanh()
        return self.softmax(self.drop(output)), first, upper

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        """() mean loss of labels (B, T), -100 for padding."""
        memory, state = self.encode(input_ids, attention_mask)
        words = F.pad(labels, (1, 0), value=EOS)[:, :-1].clamp(min=PAD)
        logits, _, _ = self.decode(words, memory, attention_mask, None, state)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    @torch.no_grad()
    def greedy(self, source: Tensor, mask: Tensor, length: int) -> Tensor:
        """(B, length) the most probable word after every word."""
        memory, upper = self.encode(source, mask)
        words, first, found = torch.full((len(source), 1), EOS), None, []
        for _ in range(length):
            logits, first, upper = self.decode(words, memory, mask, first, upper)
            words = logits.argmax(2)
            found.append(words)
        return torch.cat(found, 1)

    @torch.no_grad()
    def beam(self, source: Tensor, mask: Tensor, length: int, beams: int) -> Tensor:
        """(B, length) the best of K = `beams` hypotheses, all of the same length."""
        rows = len(source)
        memory, upper = self.encode(source, mask)
        memory, mask = memory.repeat_interleave(beams, 0), mask.repeat_interleave(beams, 0)
        upper = [part.repeat_interleave(beams, 1) for part in upper]
        first, offsets = None, torch.arange(rows).unsqueeze(1) * beams
        words = torch.full((rows * beams, 1), EOS)
        totals = torch.tensor([0.0] + [-torch.inf] * (beams - 1)).repeat(rows, 1)  # (B, K): all begin alike
        for _ in range(length):
            logits, first, upper = self.decode(words[:, -1:], memory, mask, first, upper)
            scores = logits.log_softmax(2).view(rows, beams, -1) + totals.unsqueeze(2)  # (B, K, V)
            classes = scores.shape[2]
            totals, best = scores.flatten(1).topk(beams)
            places = (best // classes + offsets).flatten()
            words = torch.cat([words[places], (best % classes).view(-1, 1)], 1)
            first, upper = ([part[:, places] for part in state] for state in (first, upper))
        return words.view(rows, beams, -1)[:, 0, 1:]


def count(model: nn.Module, without: str = "encoder_lm_head") -> int:
    """Trained parameters, those of one module left out."""
    parts = model.named_parameters()
    return sum(
        part.numel() for name, part in parts if part.requires_grad and not name.startswith(f"{without}.")
    )


def transformer_config(config: LstmSeq2SeqConfig, parameters: int) -> MarianConfig:
    """A Transformer of as many layers and, nearly, `parameters`.

    Of all d_model (steps of 16, four heads) the one is taken that leaves a feed-forward size nearest to four times as much.

    Raises:
        ValueError: no such size.
    """

    def of(d_model: int, inner: int) -> MarianConfig:
        return MarianConfig(
            vocab_size=config.source_vocab_size,
            decoder_vocab_size=config.vocab_size,
            share_encoder_decoder_embeddings=False,
            tie_word_embeddings=False,
            d_model=d_model,
            **dict.fromkeys(("encoder_layers", "decoder_layers"), config.num_hidden_layers),
            **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
            **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), inner),
            max_position_embeddings=2 * LONGEST,
            dropout=config.dropout,
            pad_token_id=PAD,
            bos_token_id=EOS,
            eos_token_id=EOS,
            forced_eos_token_id=None,
            decoder_start_token_id=EOS,
        )

    def size(d_model: int, inner: int) -> int:
        with torch.device("meta"):
            return count(MarianMTModel(of(d_model, inner)))

    found = {}
    for d_model in range(16, 2048, 16):
        base = size(d_model, 1)
        inner = 1 + round((parameters - base) / (size(d_model, 2) - base))
        if inner < 1:
            break
        found[abs(inner / (4 * d_model) - 1)] = d_model, inner
    if not found:
        raise ValueError(
            f"no Transformer of {config.num_hidden_layers} layers has {parameters:,} parameters."
        )
    return of(*found[min(found)])


def make_systems(config: LstmSeq2SeqConfig, seed: int) -> dict[str, nn.Module]:
    """The models by their names; training with LM batches has one of its own, so that no optimizer is shared."""
    torch.manual_seed(seed)
    plain = PlainSeq2Seq(config)
    ours = [LstmSeq2SeqForConditionalGeneration(config) for _ in range(2)]
    transformer = MarianMTModel(transformer_config(config, count(plain)))
    return dict(zip((PLAIN, OURS, JOINT, TRANSFORMER), (plain, *ours, transformer), strict=True))


def pair_lengths(seed: int) -> tuple[list[tuple[int, int]], str]:
    """Words of source and target of many pairs, and where the numbers come from."""
    files = [TEXTS / f"train.{language}" for language in ("en", "de")]
    if all(file.is_file() for file in files):
        sides = (file.read_text(encoding="utf-8").splitlines() for file in files)
        found = [[len(re.findall(r"\w+|[^\w\s]", line)) for line in lines] for lines in sides]
        pairs = [tuple(min(max(length, 1), LONGEST) for length in pair) for pair in zip(*found, strict=True)]
        return pairs, "those of Multi30k"
    draw = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(seed))
    both = (14 + 4 * draw[0] + 2 * draw[1] * torch.tensor([[1.0], [-1.0]])).round().clamp(3, 40).long()
    return list(zip(*both.tolist(), strict=True)), "drawn around 14"


class Batches:
    """Random words in sentences of given lengths; equal numbers give equal batches."""

    def __init__(self, config: LstmSeq2SeqConfig, lengths: list[tuple[int, int]], seed: int):
        self.config, self.lengths, self.seed = config, lengths, seed

    def pairs(self, number: int, rows: int, with_text: bool = False) -> dict[str, Tensor]:
        """A batch of pairs; with as many monolingual sentences of both sides where asked."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        source, target = self._lengths(rows, generator)
        batch = self._text(source, self.config.source_vocab_size, generator)
        labels = self._text(target + 1, self.config.vocab_size, generator)
        ends = F.one_hot(target, labels["input_ids"].shape[1]).bool()
        labels = labels["input_ids"].masked_fill(ends, EOS).masked_fill(labels["attention_mask"] == 0, -100)
        batch["labels"] = labels
        if with_text:
            for side, lengths in zip(("source", "target"), self._lengths(rows, generator), strict=True):
                size = self.config.source_vocab_size if side == "source" else self.config.vocab_size
                text = self._text(lengths + 2, size, generator)
                batch |= {f"{side}_lm_{name}": tensor for name, tensor in text.items()}
        return batch

    def _lengths(self, rows: int, generator: torch.Generator) -> Tensor:
        places = torch.randint(len(self.lengths), (rows,), generator=generator).tolist()
        return torch.tensor([self.lengths[place] for place in places]).T  # (2, B)

    def _text(self, lengths: Tensor, size: int, generator: torch.Generator) -> dict[str, Tensor]:
        shape = len(lengths), int(lengths.max())
        ids = torch.randint(FIRST_WORD, size, shape, generator=generator)
        mask = torch.arange(shape[1]) < lengths[:, None]
        return {"input_ids": ids.masked_fill(~mask, PAD), "attention_mask": mask.long()}


def training(name: str, model: nn.Module, batches: Batches, rows: int, steps: int) -> Callable:
    """A function that makes ready a repeat, which trains `steps` steps and returns their target tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def run(repeat: int) -> Callable[[], int]:
        data = [batches.pairs(repeat * steps + step, rows, name == JOINT) for step in range(steps)]

        def work() -> int:
            model.train()
            for batch in data:
                optimizer.zero_grad()
                output = model(**batch)
                (output if name == PLAIN else output.loss).backward()
                optimizer.step()
            return sum(int((batch["labels"] != -100).sum()) for batch in data)

        return work

    return run


def never_end(model: nn.Module) -> None:
    """Make the end of a sentence impossible."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    names = ("softmax.bias", "lm_head.bias", "final_logits_bias")
    (bias,) = (tensors[name] for name in names if name in tensors)
    with torch.no_grad():
        bias[..., EOS] = -1e9


def decode(name: str, model: nn.Module, source: dict[str, Tensor], beams: int) -> Tensor:
    """(B, TOKENS) what a system makes of sources."""
    model.eval()
    if name == PLAIN:
        sources = source["input_ids"], source["attention_mask"], TOKENS
        return model.greedy(*sources) if beams == 1 else model.beam(*sources, beams)
    found = model.generate(**source, max_new_tokens=TOKENS, num_beams=beams, do_sample=False)
    return found[:, 1:]  # without the start


def decoding(name: str, model: nn.Module, batches: Batches, rows: int, beams: int) -> Callable:
    """A function that makes ready a repeat, which decodes one batch and returns its sentences."""

    def run(repeat: int) -> Callable[[], int]:
        batch = batches.pairs(repeat, rows)
        del batch["labels"]
        return lambda: len(decode(name, model, batch, beams))

    return run


def medians(systems: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Items a second of every system: the median over repeats, in each of which all run in turn, after one to warm up."""
    rates = {name: [] for name in systems}
    for repeat in range(repeats + 1):
        for name, prepare in systems.items():
            work = prepare(repeat)
            start = time.process_time()
            items = work()
            seconds = time.process_time() - start
            if repeat:
                rates[name].append(items / seconds)
    return {name: statistics.median(found) for name, found in rates.items()}


def measure(options: argparse.Namespace, config: LstmSeq2SeqConfig) -> tuple[list[dict], str]:
    """A record for each system, and where the lengths come from."""
    systems = make_systems(config, options.seed)
    lengths, origin = pair_lengths(options.seed)
    batches, columns = Batches(config, lengths, options.seed), {}
    for rows in options.batches:
        work = {n: training(n, model, batches, rows, options.steps) for n, model in systems.items()}
        columns[f"training, batch {rows}, target tokens/s"] = medians(work, options.repeats)
    decoders = {name: model for name, model in systems.items() if name != JOINT}
    for model in decoders.values():
        never_end(model)
    for beams in options.beams:
        work = {n: decoding(n, model, batches, options.rows, beams) for n, model in decoders.items()}
        column = f"{'greedy' if beams == 1 else f'beam {beams}'}, sentences/s"
        columns[column] = medians(work, options.repeats)
    rows = []
    for name, model in systems.items():
        rates = {column: found[name] for column, found in columns.items() if name in found}
        rows.append({"system": name, "parameters": count(model), "rates": rates})
    return rows, origin


def table(rows: list[dict]) -> str:
    """The Markdown table; in parentheses each speed divided by that of plain."""
    plain = rows[0]["rates"]
    names = ["system", "parameters", *plain]
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for row in rows:
        cells = [row["system"], f"{row['parameters']:,}"]
        for column, yardstick in plain.items():
            rate = row["rates"].get(column)
            cells.append("" if rate is None else f"{rate:,.0f} ({rate / yardstick:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and write the numbers as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", choices=SIZES, default="small")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[32, 64], help="pairs in a step of training"
    )
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4, 10], help="1 is greedy")
    parser.add_argument("--rows", type=int, default=50, help="sentences decoded at a time")
    parser.add_argument("--steps", type=int, default=3, help="of training in a repeat")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    options = parser.parse_args()
    torch.set_num_threads(1)  # processor time counts all threads
    sizes = SIZES[options.sizes]
    config = LstmSeq2SeqConfig(**sizes, encoder_vocab_size=sizes["vocab_size"], encoder_pad_token_id=PAD)
    load = os.getloadavg()
    rows, origin = measure(options, config)
    facts = {
        "date": date.today().isoformat(),
        "processor": processor(),
        "threads": 1,
        "load": [round(load[0], 2), round(os.getloadavg()[0], 2)],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": options.seed,
        "sizes": options.sizes,
        "repeats": options.repeats,
        "steps": options.steps,
        "lengths": origin,
    }
    print(f"{facts['date']}, {facts['processor']}, one thread, load {load[0]:.1f} at the start")
    print(f"torch {facts['torch']}, transformers {facts['transformers']}, seed {facts['seed']}")
    print(
        f"{options.sizes}, lengths {origin}, medians of {options.repeats} repeats; in parentheses: divided by plain's\n"
    )
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
