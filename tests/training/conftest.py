"""A tiny model's config, a vocabulary and some reviews, as files."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kogpt.model import KoGPTConfig
from kogpt.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece
from kogpt.training import FinetuningConfig, TrainingConfig
from tests.training.examples import reviews as reviews_of
from tests.training.examples import write_base, write_task

TINY = KoGPTConfig(
    vocab_size=440,
    n_positions=32,
    n_embd=32,
    n_layer=2,
    n_head=2,
    rotary_dim=8,
    attn_pdrop=0.0,
    embd_pdrop=0.0,
)

SENTENCES = [
    "처음부터 끝까지 눈을 뗄 수 없었다. 정말 재미있는 영화!",
    "배우들의 연기는 좋았는데 이야기가 너무 뻔해서 아쉽네요..",
    "10점 만점에 2점도 아깝다 ㅋㅋㅋㅋ 시간 낭비 ㅠㅠ",
    "음악이 참 좋아서 두 번 봤어요~ 한국어 영화 최고 😤",
    '"명작"이라고 하기엔 부족하지만 한 번쯤 볼만한 영화',
]

Settings = Callable[..., TrainingConfig]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vocabulary")
    train_sentencepiece(SENTENCES * 5, folder, vocab_size=440, character_coverage=1.0)
    return folder


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return load_tokenizer(vocabulary)


@pytest.fixture
def shape(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY.to_dict()), encoding="utf-8")
    return path


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Fifty rows: the first is held out."""
    path = tmp_path / "reviews.tsv"
    rows = [f"{i}\t{SENTENCES[i % 5]} {i}" for i in range(50)]
    path.write_text("\n".join(["id\tdocument", *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path, vocabulary: Path, shape: Path, reviews: Path) -> Settings:
    """Makes the config of a run over the reviews, with some settings changed."""

    def make(**changes: object) -> TrainingConfig:
        given: dict = {
            "data": (reviews,),
            "out": tmp_path / "run",
            "model": str(shape),
            "tokenizer": vocabulary,
            "steps": 6,
            "batch_size": 4,
            "warmup_steps": 2,
            "log_every": 1,
            "curve": False,
            "tensorboard": False,
        }
        return TrainingConfig(**{**given, **changes})

    return make


Finetune = Callable[..., FinetuningConfig]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    shape = dataclasses.replace(TINY, n_positions=64)
    return write_base(tmp_path_factory.mktemp("base") / "tiny", shape, tokenizer)


@pytest.fixture
def task(tmp_path: Path) -> Path:
    return write_task(tmp_path, reviews_of(120, 0), reviews_of(40, 1000))


@pytest.fixture
def finetuning(tmp_path: Path, base: Path, task: Path) -> Finetune:
    """Makes the config of a run over the made-up task, with some settings changed."""

    def make(**changes: object) -> FinetuningConfig:
        given: dict = {
            "data": (str(task),),
            "data_dir": tmp_path,
            "out": tmp_path / "tuned",
            "model": str(base),
            "method": "full",
            "steps": 6,
            "batch_size": 8,
            "log_every": 1,
            "curve": False,
            "tensorboard": False,
        }
        return FinetuningConfig(**{**given, **changes})

    return make
