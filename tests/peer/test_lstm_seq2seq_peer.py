"""Transformers' suite on the LSTM encoder-decoder."""

import unittest

import torch
from peer.suite import LENGTH, ROWS, WORDS, GenerationTesterMixin, PeerTest, some_ids

from heirloom.modeling.configuration_lstm_seq2seq import LstmSeq2SeqConfig
from heirloom.modeling.modeling_lstm_seq2seq import LstmSeq2SeqForConditionalGeneration


class LstmSeq2SeqTest(PeerTest, GenerationTesterMixin, unittest.TestCase):
    config_class = LstmSeq2SeqConfig
    all_model_classes = (LstmSeq2SeqForConditionalGeneration,)
    is_encoder_decoder = True
    fields = {  # noqa: RUF012
        "vocab_size": WORDS,
        "embedding_size": 16,
        "cell_size": 16,
        "upper_size": 16,
        "num_hidden_layers": 2,
        "dropout": 0.0,
    }

    def inputs(self):
        mask = torch.ones(ROWS, LENGTH, dtype=torch.long)
        return PeerTest.inputs(self) | {
            "decoder_input_ids": some_ids(ROWS, LENGTH),
            "decoder_attention_mask": mask,
        }
