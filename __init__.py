"""heirloom: language models whose weights are passed down, for Hugging Face Transformers.

`import heirloom` costs a hundredth of a second and no torch. It announces the models of `modeling/auto_map.py` to
Transformers' Auto classes, and two tasks to its pipelines, the moment those are imported, before or after this package.
"""

import importlib
import sys

from .modeling.auto_map import ALSO, AUTO_MAP, AUTO_TOKENIZERS

__version__ = "0.1.0"


def _class(room: str, place: str) -> type:
    """The class that `file.Class` names in a room."""
    file, name = place.split(".")
    return getattr(importlib.import_module(f"{__name__}.{room}.{file}"), name)


_LAZY = {
    place.rsplit(".", 1)[1]: ("modeling", place) for places in AUTO_MAP.values() for place in places.values()
} | {place.rsplit(".", 1)[1]: ("tokenization", place) for place in AUTO_TOKENIZERS.values()}
_LAZY |= {
    place.rsplit(".", 1)[1]: ("modeling", place)
    for lists in ALSO.values()
    for places in lists.values()
    for place in places
}
_LAZY |= {
    "ForgettingReport": ("training", "forgetting_report.ForgettingReport"),
    "GenerationScores": ("training", "generated_text.GenerationScores"),
    "GradualUnfreezing": ("training", "layerwise.GradualUnfreezing"),
    "InputTemplate": ("objectives", "input_forms.InputTemplate"),
    "JointLossCollator": ("objectives", "joint_collators.JointLossCollator"),
    "JointLossTrainer": ("training", "joint_trainer.JointLossTrainer"),
    "JointSeq2SeqTrainer": ("training", "seq2seq_trainer.JointSeq2SeqTrainer"),
    "MonolingualCollator": ("objectives", "seq2seq.MonolingualCollator"),
    "MonolingualText": ("training", "seq2seq_trainer.MonolingualText"),
    "ParallelCollator": ("objectives", "seq2seq.ParallelCollator"),
    "PretrainingTrainer": ("training", "trainer.PretrainingTrainer"),
    "ReplaySentences": ("objectives", "joint_collators.ReplaySentences"),
    "ScalarMix": ("modeling", "scalar_mix.ScalarMix"),
    "Seq2SeqArguments": ("training", "seq2seq_arguments.Seq2SeqArguments"),
    "StepDecay": ("training", "seq2seq_trainer.StepDecay"),
    "StockPretrainingTrainer": ("training", "stock_pretraining.StockPretrainingTrainer"),
    "ZeroShotScorer": ("sharing", "zero_shot.ZeroShotScorer"),
    "init_embeddings": ("conversion", "word_vectors.init_embeddings"),
    "load_word_vectors": ("conversion", "word_vectors.load_word_vectors"),
    "lstmp": ("modeling", "lstmp.lstmp"),
    "open_tokenizers": ("training", "parallel_text.open_tokenizers"),
    "lexical_substitutes": ("sharing", "scoring.lexical_substitutes"),
    "score_sentences": ("sharing", "scoring.score_sentences"),
    "train_seq2seq": ("training", "seq2seq.train_seq2seq"),
    "translate": ("sharing", "translation.translate"),
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return _class(*_LAZY[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


def _register_configs() -> None:
    from transformers.models.auto.configuration_auto import AutoConfig

    for model_type, places in AUTO_MAP.items():
        AutoConfig.register(model_type, _class("modeling", places["AutoConfig"]), exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto

    for model_type, places in AUTO_MAP.items():
        config_class = _class("modeling", places["AutoConfig"])
        for auto_class, place in places.items():
            if auto_class != "AutoConfig":
                also = ALSO.get(model_type, {}).get(auto_class, [])
                models = tuple(_class("modeling", one) for one in (place, *also))
                getattr(modeling_auto, auto_class).register(
                    config_class, models if also else models[0], exist_ok=True
                )


def _register_tokenizers() -> None:
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    for model_type, place in AUTO_TOKENIZERS.items():
        config_class = _class("modeling", AUTO_MAP[model_type]["AutoConfig"])
        AutoTokenizer.register(config_class, _class("tokenization", place), exist_ok=True)


def _register_pipelines() -> None:
    _class("sharing", "pipelines.register_pipelines")()


_REGISTER = {
    "transformers.models.auto.configuration_auto": _register_configs,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.tokenization_auto": _register_tokenizers,
    "transformers.pipelines": _register_pipelines,
}


class _AfterImport:
    """Lets an Auto module import as usual, then registers our classes with it.

    Transformers has no plug-in mechanism, and importing it here would cost every `import heirloom` seconds. If it is one of
    our own files that imports an Auto module, its classes do not exist yet: then registration waits for its end.
    """

    def __init__(self):
        self.depth = 0  # of our own files that are being imported
        self.waiting = []

    def find_spec(self, fullname, path=None, target=None):
        ours = fullname.startswith(f"{__name__}.")
        if not ours and fullname not in _REGISTER:
            return None
        later = sys.meta_path[sys.meta_path.index(self) + 1 :]  # those before have found nothing
        specs = (finder.find_spec(fullname, path, target) for finder in later if hasattr(finder, "find_spec"))
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_then_register(module):
            self.depth += ours
            try:
                run(module)
            finally:
                self.depth -= ours
            self.waiting += [] if ours else [_REGISTER[fullname]]
            while self.waiting and not self.depth:
                self.waiting.pop(0)()

        spec.loader.exec_module = run_then_register
        return spec


if __name__ == "heirloom":  # test runners also import a checkout under its folder's name; one copy is enough
    for _name, _register in _REGISTER.items():
        if _name in sys.modules:
            _register()
    if not all(_name in sys.modules for _name in _REGISTER):
        sys.meta_path.insert(0, _AfterImport())
