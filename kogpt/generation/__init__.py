"""Text from a model: sampling parameters, logits processors, the loop, beam search, scores."""

from kogpt.generation.api import generate, stream
from kogpt.generation.params import SamplingParams
from kogpt.generation.sample import Generation
from kogpt.generation.scoring import Score, score

__all__ = ["Generation", "SamplingParams", "Score", "generate", "score", "stream"]
