"""What a run leaves beside its weights."""

import io

import pytest

from kogpt.errors import KoGPTError, NotEnoughResourcesError
from kogpt.training import finetune
from kogpt.training import log as log_module
from kogpt.training.log import read_log


def test_events_for_tensorboard_are_those_of_the_log(finetuning):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = finetuning(tensorboard=True, steps=4, validate_every=2)
    finetune(config, io.StringIO())
    finetune(finetuning(tensorboard=True, steps=6, validate_every=2, resume=True), io.StringIO())
    events = accumulator.EventAccumulator(str(config.folder / "tensorboard")).Reload()
    log = read_log(config.folder / "log.jsonl")
    assert len(log) == 6 + 3
    for name in ("loss", "learning_rate", "accuracy"):
        expected = [(entry["step"], entry[name]) for entry in log if name in entry]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        values = [value for _, value in found]
        assert values == pytest.approx([value for _, value in expected], rel=1e-6)


def test_a_missing_tensorboard_is_named_if_it_is_asked_for(finetuning, monkeypatch):
    monkeypatch.setattr(log_module, "find_spec", lambda name: None)
    finetune(finetuning(tensorboard=None, steps=1), io.StringIO())
    with pytest.raises(KoGPTError, match="pip install tensorboard"):
        finetune(finetuning(tensorboard=True, steps=2, resume=True), io.StringIO())


def test_a_log_that_finds_no_room_is_named(finetuning, monkeypatch):
    """As a disk that another program fills up while a run goes on."""
    config = finetuning(steps=2, log_every=1)
    real = log_module.Progress.record

    def record(self, *entry):
        self._file = io.FileIO("/dev/full", "w")
        real(self, *entry)

    monkeypatch.setattr(log_module.Progress, "record", record)
    with pytest.raises(NotEnoughResourcesError, match="/dev/full: cannot be written: No space"):
        finetune(config, io.StringIO())
