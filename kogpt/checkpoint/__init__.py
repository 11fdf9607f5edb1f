"""Safe reading, atomic writing and conversion of checkpoints."""

from kogpt.checkpoint.convert import ConversionOptions, convert
from kogpt.checkpoint.inspecting import Inspection, inspect
from kogpt.checkpoint.loading import load_model
from kogpt.checkpoint.reader import CheckpointReader, open_checkpoint
from kogpt.checkpoint.report import ConversionReport
from kogpt.checkpoint.verifying import Verification, verify
from kogpt.checkpoint.writer import write_checkpoint

__all__ = [
    "CheckpointReader",
    "ConversionOptions",
    "ConversionReport",
    "Inspection",
    "Verification",
    "convert",
    "inspect",
    "load_model",
    "open_checkpoint",
    "verify",
    "write_checkpoint",
]
