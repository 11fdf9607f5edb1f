"""Where the model in the box lies: a checkpoint folder that comes with the package."""

from pathlib import Path

BOX = Path(__file__).resolve().parent / "nano"
