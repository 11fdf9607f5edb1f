"""Several processes: how they find each other, cut a model, train it and keep it.

Only what every command needs is imported here; cutting models asks PyTorch for more.
"""

from kogpt.parallel.processes import Parallel

__all__ = ["Parallel"]
