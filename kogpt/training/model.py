"""The model a run begins with: new, from a checkpoint, or where the run was left."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import torch

from kogpt.architecture import load_architecture
from kogpt.box import BOX
from kogpt.checkpoint import load_model, open_checkpoint
from kogpt.checkpoint.names import count_parameters, expand, refuse_unsavable
from kogpt.checkpoint.resources import require_memory
from kogpt.checkpoint.writer import raw_bytes
from kogpt.choices import FLOAT32
from kogpt.errors import InputRefusedError, ParameterError
from kogpt.jsonfiles import read_config_object, to_json
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.model.hollow import unwritten
from kogpt.model.variants import PRESETS, class_of, find_config
from kogpt.parallel import Parallel
from kogpt.tokenizer import Tokenizer, load_tokenizer
from kogpt.training.config import RunConfig, TrainingConfig
from kogpt.training.sharing import share_out

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a shape, from its tokenizer


def load_start(
    config: TrainingConfig, last: Path | None, parallel: Parallel
) -> tuple[KoGPT, Tokenizer]:
    """The model, its weights as the config says, and its tokenizer.

    Args:
        config: says what to begin with.
        last: the newest checkpoint of a run that goes on.
        parallel: the processes; each makes or reads its own part.

    Raises:
        InputRefusedError: one of them is missing or damaged, or they do not fit each other.
    """
    dtype = torch.float32 if config.weights == FLOAT32 else torch.bfloat16
    if last is not None:
        model = load_weights(last, dtype, config, parallel)
        _refuse_other_shape(config, model.config)
        return model, load_tokenizer(last)
    is_new = begins_new(config)
    if is_new and config.tokenizer is None:
        raise InputRefusedError(
            f"{config.model} is a shape without a tokenizer: name the folder of one by"
            f" --tokenizer, such as {BOX}"
        )
    if not is_new:
        require_checkpoint(config)
    tokenizer = load_tokenizer(config.tokenizer or config.model)
    if not is_new:
        model = load_weights(Path(config.model), dtype, config, parallel)
        _check_vocabulary(model.config, tokenizer, config.model)
    else:
        model = _new_model(config, tokenizer, parallel).to(dtype)
    return model, tokenizer


def begins_new(config: TrainingConfig) -> bool:
    """Whether a run begins with new weights: of a shape, whose name `./NAME`, a folder, is not."""
    return config.model in PRESETS or not Path(config.model).is_dir()


def require_checkpoint(config: RunConfig) -> None:
    """Refuses what holds no model, such as an adapter, before a tokenizer is missed there.

    Raises:
        InputRefusedError: says what it is.
    """
    with open_checkpoint(config.model, own_class(config)):
        pass


def load_weights(
    path: Path,
    dtype: torch.dtype,
    config: RunConfig,
    parallel: Parallel,
    add: Callable[[KoGPT], None] = lambda model: None,
) -> KoGPT:
    """A model from a checkpoint, to be trained; in several processes each reads its own part.

    Args:
        path: of the checkpoint.
        dtype: of the weights.
        config: of the run.
        parallel: the processes.
        add: puts into the model what is to be in it beside.
    """
    if parallel.alone:
        model = load_model(path, dtype, parallel.device, model_class=own_class(config))
        add(model)
        return model
    _refuse_own_class(config)
    from kogpt.parallel.loading import load_parallel  # slow to import

    def prepare(model: KoGPT) -> None:
        add(model)
        share_out(model, config, parallel)

    return load_parallel(path, parallel, dtype, cut=prepare, offload=config.offload)


def fingerprint_of_base(config: RunConfig) -> str:
    """Hash of a few rows of every tensor of the checkpoint `config.model`."""
    own = own_class(config)
    digest = hashlib.sha256()
    with open_checkpoint(config.model, own) as reader:
        for name, shape in expand(reader.require_config(), own).items():
            digest.update(f"{name} {shape}".encode())
            for row in (0, shape[0] // 2, shape[0] - 1):
                digest.update(raw_bytes(reader.read(name, slice(row, row + 1))))
    return digest.hexdigest()


def own_class(config: RunConfig) -> type[KoGPT] | None:
    """The class that a run names; None where it names none."""
    return load_architecture(config.architecture)


def _refuse_own_class(config: RunConfig) -> None:
    if config.architecture is not None:
        raise ParameterError(f"architecture {config.architecture}: only in one process")


def _new_model(config: TrainingConfig, tokenizer: Tokenizer, parallel: Parallel) -> KoGPT:
    own = own_class(config)
    shape = find_config(config.model, own)
    if config.model not in PRESETS:
        _refuse_misspelt(Path(config.model), shape)
    model_class = own or class_of(shape)
    _refuse_lost_fields(shape)
    _check_vocabulary(shape, tokenizer, config.model)
    ids = {name: getattr(tokenizer, name.replace("_token", "")) for name in TOKEN_IDS}
    shape = dataclasses.replace(shape, **ids)
    generator = torch.Generator().manual_seed(config.seed)
    if not parallel.alone:
        _refuse_own_class(config)
        from kogpt.parallel.loading import new_parallel  # slow to import

        cut = partial(share_out, config=config, parallel=parallel)
        return new_parallel(shape, parallel, generator, cut=cut, offload=config.offload)
    size = 4 * count_parameters(shape, own)
    require_memory(torch.device("cpu"), size, f"new weights of {config.model}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # of what a class of one's own draws
        model = unwritten(model_class, shape)
        refuse_unsavable(model)
        with torch.no_grad():
            model.init_weights(generator)
    return model


def _refuse_lost_fields(shape: KoGPTConfig) -> None:
    """Refuses a config of one's own that its `config.json` would not give back."""
    try:
        same = type(shape).from_dict(json.loads(to_json(shape.to_dict()))) == shape
    except TypeError as error:  # what JSON does not know, as sets and enums
        raise InputRefusedError(f"{type(shape).__name__}: {error}") from None
    if not same:
        raise InputRefusedError(f"{type(shape).__name__} does not come back from its config.json")


def _refuse_misspelt(path: Path, shape: KoGPTConfig) -> None:
    """Refuses what is nearly the name of a setting: its value would go unheard.

    Other keys that are none may be of the library that wrote the file.
    """
    known = shape.to_dict().keys() | shape.to_released_dict().keys()
    for key in read_config_object(path).keys() - known:
        for close in get_close_matches(key, known, n=1, cutoff=0.8):
            raise InputRefusedError(f"{path}: {key} is no setting, {close} is")


def _refuse_other_shape(config: TrainingConfig, begun: KoGPTConfig) -> None:
    """Refuses to go on where the file that a run took its shape from has another one by now."""
    if not Path(config.model).is_file():
        return
    now = find_config(config.model, own_class(config)).to_dict()
    for name, before in begun.to_dict().items():
        if name not in TOKEN_IDS and now.get(name) != before:
            raise InputRefusedError(
                f"cannot resume with another shape: in {config.model} {name} is {now.get(name)!r},"
                f" it was {before!r}"
            )


def _check_vocabulary(shape: KoGPTConfig, tokenizer: Tokenizer, name: str) -> None:
    # Fewer ids than rows is common: rows are rounded up to sizes that suit the hardware.
    if tokenizer.vocab_size > shape.vocab_size:
        raise InputRefusedError(
            f"the tokenizer has {tokenizer.vocab_size} ids, model {name} only {shape.vocab_size}"
        )
