"""KoGPT, the Korean GPT-J: model, tokenizer, converter and sampling loop.

Names below are imported when they are first used, so `import kogpt` costs next to nothing.
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "kogpt.adapters": (
        *("LoRAConfig", "PromptConfig", "load_adapters", "load_classifier"),
        *("merge", "merge_checkpoint"),
    ),
    "kogpt.checkpoint": ("ConversionOptions", "convert", "inspect", "load_model", "verify"),
    "kogpt.errors": ("InputRefusedError", "KoGPTError", "NotEnoughResourcesError"),
    "kogpt.evaluation.classifying": ("Prediction", "classify"),
    "kogpt.generation": (
        *("CorpusScore", "DraftModel", "Generation", "PromptLookup", "SamplingParams", "Score"),
        *("generate", "score", "stream"),
    ),
    "kogpt.loading": ("load",),
    "kogpt.model": ("KVCache", "KoGPT", "KoGPTConfig"),
    "kogpt.tokenizer": ("Tokenizer", "load_tokenizer"),
    "kogpt.training": ("FinetuningConfig", "TrainingConfig", "finetune", "train"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kogpt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
