"""The one table of config, models and Auto classes: registration and every checkpoint's `auto_map` come from it.

Values read `file.Class`, as `config.json` wants them; the files lie in this folder, and beside the weights in a checkpoint.
"""

AUTO_MAP: dict[str, dict[str, str]] = {
    "electra-joint": {
        "AutoConfig": "configuration_electra_joint.ElectraJointConfig",
        "AutoModelForPreTraining": "modeling_electra_joint.ElectraForJointPreTraining",
    },
    "elmo": {
        "AutoConfig": "configuration_elmo.ElmoConfig",
        "AutoModel": "modeling_elmo.ElmoModel",
        "AutoModelForPreTraining": "modeling_elmo.ElmoForPreTraining",
        "AutoModelForSequenceClassification": "modeling_elmo.ElmoForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_elmo.ElmoForTokenClassification",
    },
    "ernie-thu": {
        "AutoConfig": "configuration_ernie_thu.ErnieThuConfig",
        "AutoModel": "modeling_ernie_thu.ErnieThuModel",
        "AutoModelForPreTraining": "modeling_ernie_thu.ErnieThuForPreTraining",
    },
    "infoword": {
        "AutoConfig": "configuration_infoword.InfoWordConfig",
        "AutoModelForPreTraining": "modeling_infoword.InfoWordForPreTraining",
    },
    "lstm-lm": {
        "AutoConfig": "configuration_lstm_lm.LstmLMConfig",
        "AutoModel": "modeling_lstm_lm.LstmLMModel",
        "AutoModelForCausalLM": "modeling_lstm_lm.LstmLMForCausalLM",
    },
    "lstm-seq2seq": {
        "AutoConfig": "configuration_lstm_seq2seq.LstmSeq2SeqConfig",
        "AutoModelForSeq2SeqLM": "modeling_lstm_seq2seq.LstmSeq2SeqForConditionalGeneration",
    },
    "joint-loss": {
        "AutoConfig": "configuration_joint_loss.JointLossConfig",
        "AutoModelForMultipleChoice": "modeling_joint_loss.JointLossForMultipleChoice",
        "AutoModelForSequenceClassification": "modeling_joint_loss.JointLossForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_joint_loss.JointLossForTokenClassification",
    },
    "multi-task": {
        "AutoConfig": "configuration_multi_task.MultiTaskConfig",
        "AutoModel": "modeling_multi_task.MultiTaskModel",
    },
    "sentence-pair": {
        "AutoConfig": "configuration_sentence_pair.SentencePairConfig",
        "AutoModelForPreTraining": "modeling_sentence_pair.SentencePairForPreTraining",
    },
    "spanbert": {
        "AutoConfig": "configuration_spanbert.SpanBertConfig",
        "AutoModelForPreTraining": "modeling_spanbert.SpanBertForPreTraining",
    },
}

# Further models of an Auto class; a checkpoint's `architectures` says which one it is.
ALSO: dict[str, dict[str, list[str]]] = {
    "joint-loss": {"AutoModelForSequenceClassification": ["modeling_joint_loss.JointLossForSimilarity"]},
}

AUTO_TOKENIZERS: dict[str, str] = {"elmo": "tokenization_elmo.ElmoTokenizer"}
