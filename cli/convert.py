"""`heirloom convert`: originals to checkpoints and back, each verified before it is kept."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Originals to checkpoints and back.")
OUT = Annotated[Path, typer.Argument(metavar="OUT", help="New folder.")]


@app.command()
def elmo(
    out: OUT,
    options: Annotated[Path, typer.Option(help="options.json", metavar="F")],
    weights: Annotated[Path, typer.Option(help="HDF5 file, or an AllenNLP .th state dict.", metavar="F")],
    softmax: Annotated[
        Path | None, typer.Option(help="HDF5 file of the softmax; adds the language-model head.", metavar="F")
    ] = None,
    vocab: Annotated[
        Path | None, typer.Option(help="Vocabulary, one word a line; for the tokenizer.", metavar="F")
    ] = None,
) -> None:
    """Make a checkpoint of an ELMo in bilm-tf's or AllenNLP's files, and compare every number.

    Example: heirloom convert elmo --options options.json --weights weights.hdf5 elmo-original
    """
    from ..conversion.closed_world import HDF5_SIGNATURE, existing_file
    from ..conversion.saving import refuse_existing

    refuse_existing(out)
    with existing_file(weights, "HDF5 or PyTorch weights").open("rb") as file:
        start = file.read(len(HDF5_SIGNATURE))
    is_torch = start[:2] in (b"PK", b"\x80\x02") or (
        start != HDF5_SIGNATURE and weights.suffix in (".th", ".pt", ".bin", ".pth")
    )
    if is_torch:
        from ..conversion.allennlp import read_allennlp

        if softmax is not None:
            raise ValueError("--softmax belongs to HDF5 weights; an AllenNLP state dict has no softmax.")
        conversion = read_allennlp(options, weights, vocab)
    else:
        from ..conversion.bilm import read_bilm

        conversion = read_bilm(options, weights, softmax, vocab)
    config = conversion.model.config
    if vocab is None and config.word_embedding_size:
        raise ValueError("this model reads whole words: give its vocabulary, --vocab vocab.txt.")
    if vocab is None and config.vocab_size > 4:
        conversion.notes.append(
            "no --vocab: the tokenizer knows no words, so it cannot make labels for the softmax"
        )
    if conversion.tokenizer is None:
        conversion.notes.append("no tokenizer was written: the model has a character inventory of its own")
    _save(conversion, out, example=conversion.tokenizer is not None)


@app.command()
def efml(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of ELMoForManyLangs.")], out: OUT
) -> None:
    """Make a checkpoint of an ELMoForManyLangs folder, and compare every number.

    DIR holds config.json, the architecture it names, token_embedder.pkl, encoder.pkl, char.dic and word.dic.

    Example: heirloom convert efml downloads/179 elmo-portuguese
    """
    from ..conversion.efml import read_efml
    from ..conversion.saving import refuse_existing

    refuse_existing(out)
    _save(read_efml(folder), out)


@app.command()
def elmo_to_bilm(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder, or name on the Hub.")],
    out: OUT,
) -> None:
    """Write a checkpoint as options.json + weights.hdf5, as bilm-tf and AllenNLP read them, and compare.

    Adds softmax.hdf5 where the checkpoint has a softmax, and vocab.txt where its tokenizer has the words.

    Example: heirloom convert elmo-to-bilm runs/bilm for-allennlp
    """
    from ..conversion.checkpoints import load_model, load_words
    from ..conversion.saving import refuse_existing, save_bilm

    refuse_existing(out)
    _hide_progress_bars()
    model = load_model(checkpoint)
    words = load_words(checkpoint, model.config)
    rows, notes = save_bilm(model, out, words)
    if words is None and (out / "softmax.hdf5").exists():
        notes.append(
            "no vocab.txt: the checkpoint holds no tokenizer with the softmax's words that can be read"
        )
    _print_table(rows, notes, "read back from HDF5: every bit equal")
    print(f"\nwritten: {', '.join(str(path) for path in sorted(out.iterdir()))}")
    print(f"try next: heirloom convert elmo --options {out}/options.json --weights {out}/weights.hdf5 again")


@app.command()
def seq2seq(
    out: OUT,
    source: Annotated[str | None, typer.Option(metavar="LM", help="Encoder; none: random.")] = None,
    target: Annotated[str | None, typer.Option(metavar="LM", help="Decoder; none: random.")] = None,
    parts: Annotated[str, typer.Option(metavar="P,P", help="What to take.")] = "embeddings,lstm,softmax",
    layers: Annotated[int, typer.Option(metavar="N", help="Of each side; the first is an LM's.")] = 2,
    upper_size: Annotated[int | None, typer.Option(metavar="N", help="Of the other layers.")] = None,
    source_tokenizer: Annotated[
        str | None, typer.Option(metavar="T", help="Of a random encoder; else the target's.")
    ] = None,
    target_tokenizer: Annotated[str | None, typer.Option(metavar="T", help="Likewise of a decoder.")] = None,
    zero_init: Annotated[bool, typer.Option("--zero-init", help="Begin as the very target LM.")] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of what is random.")] = 42,
) -> None:
    """Make an encoder-decoder of two language models, and compare with them.

    Two LSTM LMs, or two of Transformers (BERT, GPT-2): those give a stock EncoderDecoderModel and take no options. Tokenizers
    come along: one, or OUT/source_tokenizer and OUT/target_tokenizer.

    Example: heirloom convert seq2seq --source lm-en --target lm-de en-de
    """
    from transformers import set_seed

    from ..conversion.encoder_decoder import convert_stock
    from ..conversion.saving import refuse_existing
    from ..conversion.seq2seq import convert_seq2seq
    from ..conversion.stock_models import is_stock

    refuse_existing(out)
    _hide_progress_bars()
    set_seed(seed)
    options = {"num_hidden_layers": layers, "zero_init": zero_init}
    options |= {} if upper_size is None else {"upper_size": upper_size}
    names = [part.strip() for part in parts.split(",") if part.strip()]
    tokenizers = source_tokenizer, target_tokenizer
    usual = ["embeddings", "lstm", "softmax"], 2, None, False, (None, None)
    if not is_stock(source, target):
        rows, notes = convert_seq2seq(source, target, out, names, *tokenizers, **options)
    elif (names, layers, upper_size, zero_init, tokenizers) == usual:
        rows, notes = convert_stock(source, target, out)
    else:
        raise ValueError(
            "--parts, --layers, --upper-size, --zero-init and tokenizers are for two LSTM LMs; models of Transformers are "
            "taken as they are. Leave these options out."
        )
    cells = [("parameter", "shape", "from", "max abs difference")]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        cells.append((row.parameter, shape, row.origin, f"{row.difference:g}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        left = "  ".join(cell.ljust(width) for cell, width in zip(line[:3], widths, strict=False))
        print(f"{left}  {line[3].rjust(widths[3])}")
    exact = all(row.difference == 0 for row in rows)
    print(f"read back and compared with the language models{': every bit equal' if exact else ''}")
    for note in notes:
        print(f"note: {note}")
    print(f"\nwritten: {out}")


@app.command()
def joint_to_stock(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder, or name on the Hub.")],
    out: OUT,
    pad_token_id: Annotated[
        int | None, typer.Option(help="Id of the padding token; the tokenizer's by default.", metavar="N")
    ] = None,
) -> None:
    """Write a fine-tuned joint-loss checkpoint as a stock model of Transformers, and compare logits.

    Works where the stock class has nothing but a linear layer on the body: classes on GPT-like models that were trained with
    classifier_bias=False, and tokens on any.

    Example: heirloom convert joint-to-stock runs/subj subj-gpt2
    """
    from ..conversion.joint_to_stock import ROWS, save_stock
    from ..conversion.saving import refuse_existing

    refuse_existing(out)
    _hide_progress_bars()
    model, difference = save_stock(checkpoint, out, pad_token_id)
    name = type(model).__name__
    print(f"{name}: logits of {ROWS} random rows, largest difference {difference:g}: ok")
    print(f"\nwritten: {out}")
    print(f'try next: python -c "from transformers import {name} as M; M.from_pretrained({str(out)!r})"')


@app.command()
def openai_gpt(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of finetune-transformer-lm's files.")],
    out: OUT,
    heads: Annotated[int, typer.Option(metavar="N", help="Attention heads, which no file names.")] = 12,
) -> None:
    """Make a stock openai-gpt checkpoint of OpenAI's released arrays, with its tokenizer, and compare every number.

    DIR holds params_shapes.json, params_0.npy, params_1.npy, ..., encoder_bpe_40000.json and vocab_40000.bpe.

    Example: heirloom convert openai-gpt finetune-transformer-lm/model gpt-1
    """
    from ..conversion.openai_gpt import save_openai_gpt
    from ..conversion.saving import refuse_existing

    refuse_existing(out)
    _hide_progress_bars()
    rows, notes = save_openai_gpt(folder, out, heads)
    _print_table(rows, notes, "read back: every bit equal")
    print(f"\nwritten: {out}")
    print(
        f"try next: python -c \"from transformers import pipeline; pipeline('text-generation', {str(out)!r})\""
    )


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Folder, or name on the Hub.")],
    out: OUT,
    formats: Annotated[
        str, typer.Option("--format", metavar="F,F", help="torch (torch.export), onnx.")
    ] = "torch,onnx",
) -> None:
    """Write an ELMo, or one step of an LSTM LM, as graphs that run without heirloom, and compare with the model.

    OUT holds model.safetensors and, reading their weights there, model.pt2 and model.onnx.

    Example: heirloom convert export runs/bilm bilm-onnx --format onnx
    """
    from ..conversion.export import export_checkpoint
    from ..conversion.saving import refuse_existing

    refuse_existing(out)
    _hide_progress_bars()
    rows = export_checkpoint(checkpoint, out, [part.strip() for part in formats.split(",") if part.strip()])
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        print(f"{row.file:<11} {row.output:<14} {shape:<16} max abs difference {row.difference:.2g}")
    print(f"\nwritten: {', '.join(str(path) for path in sorted(out.iterdir()))}")


def _save(conversion, out: Path, example: bool = True) -> None:
    from ..conversion.saving import save_checkpoint

    _hide_progress_bars()
    rows = save_checkpoint(conversion, out)
    _print_table(rows, conversion.notes, "written back into the original's form: every bit equal")
    print(f"\nwritten: {out}")
    if example:
        print(f"try next: heirloom embed {out} sentences.txt vectors.hdf5")
    print(
        f'          python -c "import heirloom; from transformers import AutoModel as A; A.from_pretrained({str(out)!r})"'
    )


def _hide_progress_bars() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()


def _print_table(rows, notes: list[str], verdict: str) -> None:
    cells = [("parameter group", "arrays", "numbers", "largest array", "max abs difference", "")]
    for row in rows:
        shape = " x ".join(map(str, row.shape))
        state = "ok" if row.exact and row.difference == 0 else "DIFFERS"
        cells.append((row.group, f"{row.arrays}", f"{row.numbers:,}", shape, f"{row.difference:g}", state))
    worst = max(row.difference for row in rows)
    arrays, numbers = sum(row.arrays for row in rows), sum(row.numbers for row in rows)
    cells.append(("total", f"{arrays}", f"{numbers:,}", "", f"{worst:g}", "ok"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        parts = [
            cell.rjust(width) if 0 < number < 5 else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(parts).rstrip())
    print(verdict)
    for note in notes:
        print(f"note: {note}")
