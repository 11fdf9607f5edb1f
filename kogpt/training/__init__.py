"""Training: documents, the loop, checkpoints that can be resumed."""

from kogpt.training.config import TrainingConfig
from kogpt.training.loop import train

__all__ = ["TrainingConfig", "train"]
