"""The same network prepared for decoding, beside the one that is written to be read."""

from kogpt.fast.loading import load_fast
from kogpt.fast.model import FastKoGPT

__all__ = ["FastKoGPT", "load_fast"]
