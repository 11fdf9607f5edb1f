"""The network and nothing else."""

from kogpt.model.cache import KVCache
from kogpt.model.config import PRESETS, KoGPTConfig
from kogpt.model.transformer import MLP, Attention, Block, KoGPT, Transformer

__all__ = ["MLP", "PRESETS", "Attention", "Block", "KVCache", "KoGPT", "KoGPTConfig", "Transformer"]
