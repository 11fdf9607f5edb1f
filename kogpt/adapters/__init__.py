"""What is put into a model from outside and stored on its own: LoRA, soft prompts, heads."""

from kogpt.adapters.config import TARGETS, LoRAConfig, PromptConfig
from kogpt.adapters.head import attach_head
from kogpt.adapters.lora import LoRALinear, attach_lora
from kogpt.adapters.prompt import PromptedEmbedding, attach_prompt, prompt_embeddings

__all__ = [
    "TARGETS",
    "LoRAConfig",
    "LoRALinear",
    "PromptConfig",
    "PromptedEmbedding",
    "attach_head",
    "attach_lora",
    "attach_prompt",
    "prompt_embeddings",
]
