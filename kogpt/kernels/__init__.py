"""Operators with a PyTorch reference; knows nothing of the model."""

from kogpt.kernels.attention import attention, attention_reference

__all__ = ["attention", "attention_reference"]
