"""Text from a model, and how probable a text is.

In reading order: `params` what may be asked, `api` the functions to call, `requests` what is
refused, `loop` the sampling loop, which has `batch` read, `sampling` and `processors` choose and
`sample` turn ids into text; then `speculative`, which guesses ahead, `beam`, `scoring`, and
`vocabulary`, which words are banned with.
"""

from kogpt.generation.api import generate, stream
from kogpt.generation.params import SamplingParams
from kogpt.generation.sample import Generation
from kogpt.generation.scoring import CorpusScore, Score, score
from kogpt.generation.speculative import DraftModel, PromptLookup

__all__ = [
    "CorpusScore",
    "DraftModel",
    "Generation",
    "PromptLookup",
    "SamplingParams",
    "Score",
    "generate",
    "score",
    "stream",
]
