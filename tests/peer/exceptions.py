"""Every test of Transformers' suite that one of our models is not meant to pass, with its reason.

Each is run all the same and must fail with the words given here: one that passes, or breaks elsewhere, fails the suite.
Models go by the names of their classes of tests.
"""

import unittest
from collections.abc import Callable

JOINT = ("JointLossTest", "JointLossMaskedTest", "JointLossSimilarityTest")
WRAPPED = ("SpanBertTest", "SentencePairTest", "InfoWordTest", "MultiTaskTest")
ELMO = ("ElmoTest", "ElmoWordsTest")
LSTM_LM = ("LstmLMTest", "LstmLMTiedTest")

TOP = "asks for layers or attention; the output has scores and losses, and the model inside can be asked for the rest"
ERNIE = "asks for layers or attention; the output has the top layer, the others hold two rows of vectors, words and entities"
UNLABELLED = "trains without labels for the sake of returned layers; there are none, and a model in training wants labels"
WORDS = "gives it another number of words; a model that reads characters has no table of words"
VECTORS = "gives vectors of characters, not of words, as `inputs_embeds`"
INNER = "gives `from_pretrained` the checkpoint of the model inside, whose config is another one; {} takes it"

# (models, test, words of the failure, reason)
TABLE: list[tuple[tuple[str, ...], str, str, str]] = [
    (
        ELMO,
        "test_batching_equivalence",
        "has `inf`",
        "wants finite logits; that of padding, which is no word, is -inf",
    ),
    (
        ELMO,
        "test_hidden_states_output",
        "[9, 16] != [7, 16]",
        "wants one place a word; in pre-training layers have places of `<S>` and `</S>` too",
    ),
    (
        ELMO,
        "test_model_outputs_equivalence",
        "two bool tensors",
        "subtracts outputs, which torch cannot do with the boolean `attention_mask` among them",
    ),
    (
        ELMO,
        "test_retain_grad_hidden_states_attentions",
        "unexpectedly None",
        "wants a gradient at returned layers; these are padded copies of the rows without padding that the LSTMs read",
    ),
    (("ElmoTest",), "test_inputs_embeds", "inputs_embeds must be (B, T, P)", VECTORS),
    (("ElmoTest",), "test_inputs_embeds_matches_input_ids", "inputs_embeds must be (B, T, P)", VECTORS),
    (("ElmoTest",), "test_resize_tokens_embeddings", "only a table of words can be resized", WORDS),
    (("ElmoTest",), "test_resize_embeddings_untied", "only a table of words can be resized", WORDS),
    (("ElmoTest",), "test_resize_embeddings_untied_no_reinit_on_post_init", "only a table of words", WORDS),
    (("ElmoTest",), "test_load_with_mismatched_shapes", "RuntimeError not raised", WORDS),
    (
        ("ElmoTest",),
        "test_tied_weights_keys",
        "`word_embeddings` is not an nn.Module",
        "sets `tie_word_embeddings` on a finished config, which refuses it where there is no table of words",
    ),
    (
        LSTM_LM,
        "test_causal_lm_loss_honors_shift_labels",
        "shift_labels already are; found both",
        "gives `labels` and `shift_labels`, as Trainer does where ranks share a row, which a recurrent model cannot; it "
        "refuses to guess which is meant",
    ),
    (
        ("LstmSeq2SeqTest",),
        "test_encoder_decoder_loss_no_double_shift",
        "not a function of `output.logits`",
        "wants the gradient of the loss at the logits; the loss is computed without making these",
    ),
    (
        ("LstmSeq2SeqTest",),
        "test_inputs_embeds",
        "decoder_inputs_embeds",
        "gives `decoder_inputs_embeds`; the decoder reads ids",
    ),
    (
        ("LstmSeq2SeqTest",),
        "test_model_base_model_prefix",
        "False is not true",
        "wants a model without head inside; encoder, decoder and softmaxes stand side by side",
    ),
    (
        JOINT,
        "test_load_with_mismatched_shapes",
        "for this kind of AutoModel: AutoModel.",
        "loads the checkpoint by `AutoModel`, for which there is no joint model without a head",
    ),
    (
        ("ElectraJointTest",),
        "test_config",
        "create_and_test_config_from_and_save_pretrained_composite",
        "loads each part's config by its class from the file of the whole; both parts are an `ElectraConfig`",
    ),
    (
        ("ElectraJointTest",),
        "test_model_outputs_equivalence",
        "Tuple and dict output are not equal",
        "compares two calls with labels; the generator draws anew in each",
    ),
    (
        (*JOINT, "MultiTaskTest"),
        "test_correct_missing_keys",
        "call from_backbone_pretrained of",
        INNER.format("`from_backbone_pretrained`"),
    ),
    (
        ("SpanBertTest", "SentencePairTest"),
        "test_correct_missing_keys",
        "call from_encoder of",
        INNER.format("`from_encoder`"),
    ),
    (
        ("ElectraJointTest",),
        "test_correct_missing_keys",
        "call from_electra_pretrained of",
        INNER.format("`from_electra_pretrained`"),
    ),
    *(
        ((*JOINT, *WRAPPED, "ElectraJointTest"), test, f"unexpected keyword argument '{argument}'", TOP)
        for test, argument in (
            ("test_can_capture_specific_layers_hidden_states", "output_hidden_states"),
            ("test_capture_outputs_decorator", "output_attentions"),
            ("test_hidden_states_output", "output_hidden_states"),
        )
    ),
    *(
        (("ErnieThuTest",), test, f"unexpected keyword argument '{argument}'", ERNIE)
        for test, argument in (
            ("test_can_capture_specific_layers_hidden_states", "output_hidden_states"),
            ("test_capture_outputs_decorator", "output_attentions"),
            ("test_hidden_states_output", "output_hidden_states"),
            ("test_model_outputs_equivalence", "output_hidden_states"),
        )
    ),
    (
        (*JOINT, *WRAPPED),
        "test_model_outputs_equivalence",
        "unexpected keyword argument 'output_hidden_states'",
        TOP,
    ),
    (JOINT, "test_retain_grad_hidden_states_attentions", "no attribute 'hidden_states'", TOP),
    ((*WRAPPED, "ElectraJointTest"), "test_retain_grad_hidden_states_attentions", "labels", UNLABELLED),
    (
        ("ErnieThuTest",),
        "test_retain_grad_hidden_states_attentions",
        "'NoneType' object is not subscriptable",
        ERNIE,
    ),
]
EXCEPTIONS: dict[tuple[str, str], tuple[str, str]] = {
    (model, test): (words, reason) for models, test, words, reason in TABLE for model in models
}


def must_fail(name: str, words: str, reason: str) -> Callable:
    """A test in the place of an excepted one: it runs that, skips if it fails as expected, and fails otherwise.

    Args:
        name: of the test, which its class also has as `excepted_<name>`.
        words: that its failure must say.
        reason: why it is meant to fail.
    """

    def test(self):
        result = unittest.TestResult()
        type(self)(f"excepted_{name}").run(result)
        if result.wasSuccessful():
            self.fail(
                f"{type(self).__name__}.{name} passes or is skipped: take it out of tests/peer/exceptions.py."
            )
        for _, trace in result.failures + result.errors:
            assert words in trace, (
                f"{type(self).__name__}.{name} was expected to fail otherwise: {trace[-600:]}"
            )
        self.skipTest(f"exception: {reason}")

    return test


__all__ = ["EXCEPTIONS", "TABLE", "must_fail"]
