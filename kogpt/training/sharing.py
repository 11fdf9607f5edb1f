"""How several processes share a run: what each holds of the model, and what cannot be shared."""

from kogpt.choices import ADAMW, FLOAT32
from kogpt.errors import ParameterError
from kogpt.model import KoGPT
from kogpt.parallel import Parallel
from kogpt.training.config import RunConfig


def share_out(model: KoGPT, config: RunConfig, parallel: Parallel) -> None:
    """Leaves of a model what this process holds of it while it is trained.

    Args:
        model: changed in place; without values yet, or whole and the same on every process.
        config: of the run.
        parallel: the processes.

    Raises:
        ValueError: the model does not fall into so many parts.
    """
    if parallel.alone:
        return
    from kogpt.parallel.sharding import shard  # slow to import, as the next
    from kogpt.parallel.tensor import tensor_parallel

    tensor_parallel(model, parallel)
    shard(model, parallel, precision=config.precision, offload=config.offload)


def refuse_unshared(config: RunConfig, processes: int) -> None:
    """Refuses settings that only one process alone can follow.

    Raises:
        ValueError: names the first.
    """
    if processes == 1:
        return
    asked = {
        f"weights {config.weights}": config.weights != FLOAT32,
        f"optimizer {config.optimizer}": config.optimizer != ADAMW,
        "compile": config.compile,
    }
    for setting, is_asked in asked.items():
        if is_asked:
            raise ParameterError(f"{setting} is for one process, there are {processes}")
