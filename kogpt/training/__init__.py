"""Training: whole documents or examples, the loop, checkpoints that can be resumed."""

from kogpt.training.config import FinetuningConfig, TrainingConfig
from kogpt.training.finetuning import finetune
from kogpt.training.pretraining import train

__all__ = ["FinetuningConfig", "TrainingConfig", "finetune", "train"]
