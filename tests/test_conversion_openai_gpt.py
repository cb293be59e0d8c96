"""`heirloom convert openai-gpt` on small files of the released kind: order, shapes, tokenizer, and what is refused."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, OpenAIGPTLMHeadModel
from typer.testing import CliRunner

from heirloom.cli.main import app
from heirloom.conversion.openai_gpt import parameter_shapes, read_openai_gpt, save_openai_gpt, to_openai_gpt

V, P, H, BLOCKS, HEADS = 11, 9, 8, 2, 2
PIECES = ["<unk>", "a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "ab</w>", "abc</w>", "\n</w>"]
MERGES = ["a b", "a b</w>", "ab c</w>"]


def released_shapes(blocks=BLOCKS, tokens=V, positions=P, size=H):
    """As `params_shapes.json` has them: weights are kernels of a convolution."""
    block = [[1, size, 3 * size], [3 * size], [1, size, size], [size], [size], [size]]
    block += [[1, size, 4 * size], [4 * size], [1, 4 * size, size], [size], [size], [size]]
    return [[positions, size], [tokens, size], *block * blocks]


def write(folder, shards=10, shapes=None, dtype=np.float32):
    folder.mkdir(exist_ok=True)
    shapes = shapes or released_shapes()
    rng = np.random.default_rng(0)
    arrays = [(0.3 * rng.normal(size=shape)).astype(dtype) for shape in shapes]
    line = np.concatenate([array.ravel() for array in arrays])
    for number, part in enumerate(np.array_split(line, shards)):  # cut anywhere, inside arrays too
        np.save(folder / f"params_{number}.npy", part)
    (folder / "params_shapes.json").write_text(json.dumps(shapes))
    vocabulary = {piece: number for number, piece in enumerate(PIECES)}
    (folder / "encoder_bpe_40000.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return arrays


def original_logits(arrays, X):
    """train.py's `block`s, transcribed, on the arrays in their order."""
    position, token, *rest = [torch.tensor(array) for array in arrays]
    h = token[X] + position[: X.shape[1]]

    def norm(x, g, b):
        u = x.mean(-1, keepdim=True)
        s = ((x - u) ** 2).mean(-1, keepdim=True)
        return (x - u) / torch.sqrt(s + 1e-5) * g + b

    for k in range(0, len(rest), 12):
        attn_w, attn_b, proj_w, proj_b, g1, b1, fc_w, fc_b, out_w, out_b, g2, b2 = rest[k : k + 12]
        q, key, v = (h @ attn_w[0] + attn_b).split(H, 2)
        q, key, v = (t.unflatten(2, (HEADS, -1)).transpose(1, 2) for t in (q, key, v))
        w = q @ key.transpose(2, 3) / (H // HEADS) ** 0.5
        n = w.shape[-1]
        b = torch.tril(torch.ones(n, n))
        a = (torch.softmax(w * b - 1e9 * (1 - b), -1) @ v).transpose(1, 2).flatten(2)
        h = norm(h + a @ proj_w[0] + proj_b, g1, b1)
        m = F.gelu(h @ fc_w[0] + fc_b, approximate="tanh") @ out_w[0] + out_b
        h = norm(h + m, g2, b2)
    return h @ token.T


def test_released_model_has_146_arrays():
    shapes = parameter_shapes(12, 40478, 512, 768)
    assert len(shapes) == 146
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 116_534_784
    assert shapes["transformer.h.11.mlp.c_proj.weight"] == (3072, 768)


@pytest.mark.parametrize("shards", [1, 10, 13])
def test_logits_are_the_originals(tmp_path, shards):
    arrays = write(tmp_path / "model", shards)
    save_openai_gpt(tmp_path / "model", tmp_path / "out", HEADS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model) is OpenAIGPTLMHeadModel
    X = torch.tensor([[1, 5, 9, 0, 10, 3, 3, 8, 2], [4, 4, 6, 7, 1, 2, 0, 9, 5]])
    torch.testing.assert_close(model(X).logits, original_logits(arrays, X), atol=2e-5, rtol=1e-5)
    assert model.lm_head.weight is model.transformer.tokens_embed.weight
    assert (model.config.n_layer, model.config.n_positions, model.config.vocab_size) == (BLOCKS, P, V)
    assert model.config.n_head == HEADS


def test_tokenizer(tmp_path):
    write(tmp_path / "model")
    save_openai_gpt(tmp_path / "model", tmp_path / "out", HEADS)
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words("ABC ab c ba z")["input_ids"] == [9, 8, 6, 2, 4, 0]
    assert words.get_vocab() == {piece: number for number, piece in enumerate(PIECES)}
    assert words.decode([9, 8]) == "abc ab"


def test_verb(tmp_path):
    write(tmp_path / "model")
    runner = CliRunner()
    found = runner.invoke(
        app, ["convert", "openai-gpt", str(tmp_path / "model"), str(tmp_path / "out"), "--heads", "2"]
    )
    assert found.exit_code == 0, found.output
    total = next(line for line in found.output.splitlines() if line.startswith("total"))
    numbers = sum(int(np.prod(shape)) for shape in released_shapes())
    assert total.split()[1:4] == ["26", f"{numbers:,}", "0"]
    assert "every bit equal" in found.output
    assert (tmp_path / "out" / "model.safetensors").exists()
    again = runner.invoke(app, ["convert", "openai-gpt", str(tmp_path / "model"), str(tmp_path / "out")])
    assert again.exit_code == 1


def test_bad_files(tmp_path):
    folder = tmp_path / "model"

    def refused(error, match, heads=HEADS):
        with pytest.raises(error, match=match):
            save_openai_gpt(folder, tmp_path / "out", heads)
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*"))

    refused(FileNotFoundError, "params_shapes.json does not exist")
    write(folder)
    (folder / "params_4.npy").unlink()
    refused(FileNotFoundError, r"without a gap, found \[0, 1, 2, 3, 5")
    write(folder)
    (folder / "params_9.npy").unlink()
    refused(ValueError, r"must hold 1,904 numbers of float32 in all.*found 1,714 of float32 in 9 files")
    write(folder)
    (folder / "params_3.npy").write_bytes(b"version https://git-lfs")
    refused(ValueError, "is no array of numbers")
    write(folder, dtype=np.float64)
    refused(ValueError, "found 1,904 of float64")
    write(folder, shapes=released_shapes()[:-1])
    refused(ValueError, r"12 arrays a block \(146 for 12 blocks\), found 25 arrays")
    shapes = released_shapes()
    shapes[2], shapes[4] = shapes[4], shapes[2]
    write(folder, shapes=shapes)
    refused(
        ValueError,
        r"array 2 of params_shapes.json is transformer.h.0.attn.c_attn.weight .*\(8, 24\), found \(1, 8, 8\)",
    )
    arrays = write(folder)
    arrays[3][0] = np.nan
    np.save(folder / "params_0.npy", np.full_like(np.load(folder / "params_0.npy"), np.nan))
    refused(ValueError, "not finite")
    write(folder)
    refused(ValueError, "8 features must divide by the number of heads, found 3", heads=3)


def test_bad_vocabulary(tmp_path):
    folder = tmp_path / "model"
    write(folder)
    few = {piece: number for number, piece in enumerate(PIECES[:-1])}
    (folder / "encoder_bpe_40000.json").write_text(json.dumps(few))
    with pytest.raises(ValueError, match="must number 11 pieces from 0.*found 10"):
        read_openai_gpt(folder)
    write(folder)
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\na b\nb c\n")
    with pytest.raises(
        ValueError, match=r"joins pieces that .* does not know, \[\('b', 'c'\)\] and 1 in all"
    ):
        read_openai_gpt(folder)
    (folder / "vocab_40000.bpe").write_text("#version: 0.2\na b c\n")
    with pytest.raises(ValueError, match="two pieces on each line, found 'a b c'"):
        read_openai_gpt(folder)


def test_a_model_without_training_of_its_own(tmp_path):
    """All parameters come from the files: another seed makes the same model."""
    write(tmp_path / "model")
    files = read_openai_gpt(tmp_path / "model")
    torch.manual_seed(1)
    one = to_openai_gpt(files, HEADS).state_dict()
    torch.manual_seed(2)
    other = to_openai_gpt(files, HEADS).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
