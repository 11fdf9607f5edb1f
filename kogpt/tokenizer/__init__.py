"""Text to ids and back: byte-level BPE of the release, sentencepiece of our own models, others."""

from kogpt.tokenizer.base import Tokenizer
from kogpt.tokenizer.bytelevel import ByteLevelTokenizer
from kogpt.tokenizer.loading import load_tokenizer
from kogpt.tokenizer.metaspace import MetaspaceTokenizer
from kogpt.tokenizer.spm import SentencePieceTokenizer
from kogpt.tokenizer.streaming import StreamDecoder
from kogpt.tokenizer.text import has_conjoining_jamo, normalize_text
from kogpt.tokenizer.training import train_sentencepiece

__all__ = [
    "ByteLevelTokenizer",
    "MetaspaceTokenizer",
    "SentencePieceTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "has_conjoining_jamo",
    "load_tokenizer",
    "normalize_text",
    "train_sentencepiece",
]
