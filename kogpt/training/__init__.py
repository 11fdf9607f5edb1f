"""Training: whole documents or examples, the loop, checkpoints that can be resumed."""

from kogpt.training.config import TrainingConfig
from kogpt.training.pretraining import train

__all__ = ["TrainingConfig", "train"]
