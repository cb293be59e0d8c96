"""Transformers' suite on the LSTM language model."""

import unittest

from peer.suite import WORDS, GenerationTesterMixin, PeerTest

from heirloom.modeling.configuration_lstm_lm import LstmLMConfig
from heirloom.modeling.modeling_lstm_lm import LstmLMForCausalLM, LstmLMModel

FIELDS = {"vocab_size": WORDS, "embedding_size": 16, "cell_size": 16, "num_hidden_layers": 2, "dropout": 0.0}


class OnLstmLM(PeerTest, GenerationTesterMixin):
    """What both kinds share."""

    config_class = LstmLMConfig
    all_model_classes = (LstmLMModel, LstmLMForCausalLM)


class LstmLMTest(OnLstmLM, unittest.TestCase):
    """With its own softmax."""

    fields = FIELDS


class LstmLMTiedTest(OnLstmLM, unittest.TestCase):
    """The softmax is the table of words."""

    fields = FIELDS | {"tie_word_embeddings": True}
