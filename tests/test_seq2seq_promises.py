"""What is promised of encoder-decoders and stands in no other test: every number of beams, a collator for evaluation, a biLM as
the source, a converted RoBERTa that is trained from files."""

import pytest
import torch
from reference.lstm_lm_naive import close
from reference.lstm_seq2seq_naive import tiny
from seq2seq_training import LINES, make, make_files, options, ours, plain
from test_generation_lstm_seq2seq import GREEDY, SOURCES, agree, generated, padded
from test_seq2seq_from_language_models import begin, make_elmo
from transformers import AutoModelForSeq2SeqLM, RobertaConfig, RobertaForCausalLM, RobertaModel

from heirloom.conversion.encoder_decoder import convert_stock
from heirloom.modeling.recurrent_cache import RecurrentLayer
from heirloom.objectives.seq2seq import ParallelCollator
from heirloom.sharing.translation import translate
from heirloom.training.parallel_text import open_tokenizers
from heirloom.training.seq2seq import train_seq2seq
from heirloom.training.tokenizers import train_tokenizer


@pytest.mark.parametrize("beams", range(2, 11))
def test_cached_is_uncached_for_every_number_of_beams(beams, monkeypatch):
    model, (ids, mask) = tiny(), padded(SOURCES, "left", fill=6)
    many = {"attention_mask": mask, **GREEDY, "num_beams": beams, "num_return_sequences": beams}
    full = generated(model, ids, **many, use_cache=False)
    assert agree(generated(model, ids, **many), full)
    monkeypatch.setattr(RecurrentLayer, "reorder_cache", lambda self, index: None)
    assert not agree(generated(model, ids, **many), full)


def test_evaluation_has_a_collator_of_its_own(tmp_path):
    seen = {"training": 0, "evaluation": 0}

    class Sees(ParallelCollator):
        name = "training"

        def __call__(self, rows):
            seen[self.name] += 1
            return super().__call__(rows)

    class SeesEvaluation(Sees):
        name = "evaluation"

    torch.manual_seed(0)
    trainer, _ = make(ours(), tmp_path, data_collator=Sees(), eval_data_collator=SeesEvaluation())
    trainer.train()
    assert seen["evaluation"] == 0 < seen["training"]
    trained = seen["training"]
    metrics = trainer.evaluate()
    assert seen["training"] == trained
    assert seen["evaluation"] == 4  # 10 pairs, 3 at a time
    plain_one, _ = make(trainer.model, tmp_path)
    assert metrics["eval_loss"] == plain_one.evaluate()["eval_loss"]
    assert type(trainer.data_collator) is Sees


def test_the_forward_half_of_a_bilm_as_the_source():
    elmo = make_elmo()
    model = begin(elmo, elmo)
    words = torch.randint(1, 13, (4, 6))
    text = torch.cat([torch.full((4, 1), 1), words, torch.full((4, 1), 2)], 1)
    assert close([model(source_lm_input_ids=text).loss], [elmo(words, labels=words).forward_loss])


def test_a_converted_roberta_is_trained_within_its_positions(tmp_path):
    """Of 10 positions it reads 9, since its pad is 0; a tenth would be an index error deep inside."""
    files = make_files(tmp_path)
    tokenizer = train_tokenizer(LINES * 2, "word", 60)[0]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    config = {"vocab_size": len(tokenizer), "max_position_embeddings": 10, **sizes, **marks}
    RobertaModel(RobertaConfig(**config)).save_pretrained(tmp_path / "source")
    RobertaForCausalLM(RobertaConfig(**config, is_decoder=True)).save_pretrained(tmp_path / "target")
    for side in ("source", "target"):
        tokenizer.save_pretrained(tmp_path / side)
    convert_stock(tmp_path / "source", tmp_path / "target", tmp_path / "both")
    long = [" ".join(LINES[start:] + LINES)[:200] for start in range(6)]
    for side in ("en", "de"):
        (files / f"train.{side}").write_text("\n".join(long) + "\n")
    arguments = options(
        files, model=str(tmp_path / "both"), too_long="truncate", source_monolingual=[], forgetting="lm_loss"
    )
    trainer = train_seq2seq(arguments, plain(tmp_path / "run", max_steps=2))
    for column in ("input_ids", "labels"):
        assert max(map(len, trainer.train_dataset[column])) == 9
    assert trainer.state.log_history[-1]["eval_target_forgetting"] > 0
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    pair = open_tokenizers(str(tmp_path / "run"))
    found = translate(model, pair.source, pair.target, ["the cat", *long], max_source_tokens=9)
    assert len(found) == 7
    with pytest.raises(ValueError, match="text 2 has .* tokens, but the model reads 9 at most"):
        translate(model, pair.source, pair.target, ["the cat", *long])
