"""What type checkers read of the package: `__init__.py` imports the same names as they are used."""

from kogpt.adapters import (
    LoRAConfig,
    PromptConfig,
    load_adapters,
    load_classifier,
    merge,
    merge_checkpoint,
)
from kogpt.checkpoint import ConversionOptions, convert, inspect, load_model, verify
from kogpt.errors import InputRefusedError, KoGPTError, NotEnoughResourcesError
from kogpt.evaluation.classifying import Prediction, classify
from kogpt.generation import (
    CorpusScore,
    DraftModel,
    Generation,
    PromptLookup,
    SamplingParams,
    Score,
    generate,
    score,
    stream,
)
from kogpt.loading import load
from kogpt.model import KoGPT, KoGPTConfig, KVCache
from kogpt.tokenizer import Tokenizer, load_tokenizer
from kogpt.training import FinetuningConfig, TrainingConfig, finetune, train

__version__: str

__all__ = [
    "ConversionOptions",
    "CorpusScore",
    "DraftModel",
    "FinetuningConfig",
    "Generation",
    "InputRefusedError",
    "KVCache",
    "KoGPT",
    "KoGPTConfig",
    "KoGPTError",
    "LoRAConfig",
    "NotEnoughResourcesError",
    "Prediction",
    "PromptConfig",
    "PromptLookup",
    "SamplingParams",
    "Score",
    "Tokenizer",
    "TrainingConfig",
    "classify",
    "convert",
    "finetune",
    "generate",
    "inspect",
    "load",
    "load_adapters",
    "load_classifier",
    "load_model",
    "load_tokenizer",
    "merge",
    "merge_checkpoint",
    "score",
    "stream",
    "train",
    "verify",
]
