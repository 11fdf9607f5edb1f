"""What is put into a model from outside and stored on its own: LoRA, soft prompts, heads."""

from kogpt.adapters.config import TARGETS, LoRAConfig, PromptConfig
from kogpt.adapters.files import (
    Adapter,
    Update,
    adapter_content,
    read_adapter,
    write_adapter,
    write_adapter_content,
)
from kogpt.adapters.head import attach_head, load_classifier
from kogpt.adapters.loading import load_adapters, read_adapters, virtual_ids
from kogpt.adapters.lora import LoRALinear, attach_lora
from kogpt.adapters.merging import MergeReport, merge, merge_checkpoint
from kogpt.adapters.prompt import PromptedEmbedding, attach_prompt, prompt_embeddings

__all__ = [
    "TARGETS",
    "Adapter",
    "LoRAConfig",
    "LoRALinear",
    "MergeReport",
    "PromptConfig",
    "PromptedEmbedding",
    "Update",
    "adapter_content",
    "attach_head",
    "attach_lora",
    "attach_prompt",
    "load_adapters",
    "load_classifier",
    "merge",
    "merge_checkpoint",
    "prompt_embeddings",
    "read_adapter",
    "read_adapters",
    "virtual_ids",
    "write_adapter",
    "write_adapter_content",
]
