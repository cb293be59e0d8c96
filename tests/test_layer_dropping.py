"""Students that begin as some layers of their teacher: whose layers they have, that they train and are saved, and errors."""

import pytest
import torch
from stock_lms import fuzz
from stock_pretraining_models import COMMON, SEQ2SEQ, STILL, WORDS, make
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForPreTraining,
    DistilBertConfig,
    DistilBertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    ModernBertConfig,
    ModernBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    T5Config,
    T5ForConditionalGeneration,
)

from heirloom.training.distillation import Distillation, DistillationLosses
from heirloom.training.layer_dropping import student_of

DEEP = COMMON | {"num_hidden_layers": 5}
GPT2 = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 5, "n_head": 2, "n_positions": 40}
DISTILBERT = {"vocab_size": WORDS, "dim": 16, "hidden_dim": 24, "n_layers": 5, "n_heads": 2}
TYPES = ["full_attention", "sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
TEACHERS = {
    "bert": (lambda: BertForPreTraining(BertConfig(**DEEP)), "bert.encoder.layer"),
    "roberta": (lambda: RobertaForMaskedLM(RobertaConfig(**DEEP)), "roberta.encoder.layer"),
    "distilbert": (
        lambda: DistilBertForMaskedLM(DistilBertConfig(**DISTILBERT)),
        "distilbert.transformer.layer",
    ),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(**GPT2)), "transformer.h"),
    "modernbert": (
        lambda: ModernBertForMaskedLM(
            ModernBertConfig(**DEEP, layer_types=TYPES, cls_token_id=1, sep_token_id=2, local_attention=4)
        ),
        "model.layers",
    ),
}
IDS = torch.arange(6, 26).view(2, 10)


def teacher_of(name):
    torch.manual_seed(3)
    return fuzz(TEACHERS[name][0]())


@pytest.mark.parametrize("name", TEACHERS)
def test_a_student_has_the_chosen_layers(name, tmp_path):
    teacher, where = teacher_of(name), TEACHERS[name][1]
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    for layers in (None, [0, 3], [0] if name == "modernbert" else [4]):
        chosen = [0, 2, 4] if layers is None else layers
        student = student_of(teacher, layers)
        assert type(student) is type(teacher)
        assert not student.training
        assert len(student.get_submodule(where)) == student.config.num_hidden_layers == len(chosen)
        for new, old in enumerate(chosen):
            theirs = teacher.get_submodule(f"{where}.{old}").state_dict()
            ours = student.get_submodule(f"{where}.{new}").state_dict()
            assert ours.keys() == theirs.keys()
            assert all(torch.equal(ours[key], theirs[key]) for key in ours)
            if name == "modernbert":
                assert student.config.layer_types[new] == TYPES[old]
        rest = {key: value for key, value in student.state_dict().items() if not key.startswith(f"{where}.")}
        assert all(torch.equal(value, before[key]) for key, value in rest.items())
    student = student_of(teacher)
    student.save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if name == "gpt2" else AutoModelForMaskedLM
    loaded = (type(student) if name == "bert" else auto).from_pretrained(tmp_path)
    with torch.no_grad():
        one, other = (model(IDS, output_hidden_states=True).hidden_states for model in (student, loaded))
        assert len(one) == 4
        torch.testing.assert_close(other[-1], one[-1])
        # What stands in between: the first layer's states are the teacher's.
        torch.testing.assert_close(one[1], teacher(IDS, output_hidden_states=True).hidden_states[1])
    assert len(AutoModel.from_pretrained(tmp_path).get_submodule(where.partition(".")[2])) == 3
    for parameter in student.parameters():
        parameter.data.zero_()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert teacher.config.num_hidden_layers == 5


def test_ties_and_types_stay():
    teacher = teacher_of("gpt2").to(torch.bfloat16)
    student = student_of(teacher)
    assert student.lm_head.weight is student.transformer.wte.weight
    assert {parameter.dtype for parameter in student.parameters()} == {torch.bfloat16}
    assert student.transformer.h[1].attn.layer_idx == 1  # its place in a cache
    assert student.generate(IDS[:1], max_new_tokens=3, do_sample=False).shape == (1, 13)


def test_a_student_learns_from_its_teacher():
    torch.manual_seed(3)
    teacher = fuzz(BertForPreTraining(BertConfig(**DEEP, **STILL)))
    student = student_of(teacher)
    losses = DistillationLosses(student, teacher, Distillation(2.0, 0.0, 0.0, 0.0, mse_weight=1.0))
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS}
    optimizer, found = torch.optim.Adam(student.parameters(), 0.003), []
    for _ in range(20):
        output = losses(**batch)
        found.append(output.mse_loss.item())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize("layers", [[], [0, 5], [-1, 2], [2, 1], [1, 1]])
def test_layers_that_do_not_exist(layers):
    with pytest.raises(ValueError, match=r"different numbers from 0 to 4 in rising order, found \["):
        student_of(teacher_of("bert"), layers)


def test_a_first_layer_that_is_another():
    with pytest.raises(
        ValueError, match=r"layers \[4\] of ModernBert.*attn_norm\.weight on one side alone. .* keep 0"
    ):
        student_of(teacher_of("modernbert"), [4])


def test_models_without_one_list():
    t5 = T5ForConditionalGeneration(T5Config(**SEQ2SEQ, d_kv=8, d_ff=24, num_layers=4, num_heads=2))
    with pytest.raises(
        ValueError, match=r"one list of num_hidden_layers=4 .* found encoder.block, decoder.block\."
    ):
        student_of(t5)
    albert = AlbertForMaskedLM(AlbertConfig(**DEEP, embedding_size=8))
    with pytest.raises(
        ValueError, match="found none. .* ALBERT's layers share their weights. Make the student"
    ):
        student_of(albert)
    with pytest.raises(ValueError, match="in BartForConditionalGeneration, found"):
        student_of(make("bart"))
    with pytest.raises(ValueError, match="expected a model of Transformers, found Linear"):
        student_of(torch.nn.Linear(2, 2))
