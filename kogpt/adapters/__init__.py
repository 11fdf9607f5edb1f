"""What is put into a model from outside and stored on its own: LoRA, soft prompts, heads."""

from kogpt.adapters.config import TARGETS, LoRAConfig, PromptConfig
from kogpt.adapters.files import Adapter, Update, read_adapter, write_adapter
from kogpt.adapters.head import attach_head
from kogpt.adapters.loading import load_adapters, read_adapters
from kogpt.adapters.lora import LoRALinear, attach_lora
from kogpt.adapters.prompt import PromptedEmbedding, attach_prompt, prompt_embeddings

__all__ = [
    "TARGETS",
    "Adapter",
    "LoRAConfig",
    "LoRALinear",
    "PromptConfig",
    "PromptedEmbedding",
    "Update",
    "attach_head",
    "attach_lora",
    "attach_prompt",
    "load_adapters",
    "prompt_embeddings",
    "read_adapter",
    "read_adapters",
    "write_adapter",
]
