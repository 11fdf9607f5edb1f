"""A tiny model whose logits are far from flat, with the vocabulary of the model in the box."""

import pytest
import torch

from kogpt.generation import loop
from kogpt.model import KoGPT, KoGPTConfig
from kogpt.tokenizer import Tokenizer, load_tokenizer, train_sentencepiece

TINY = KoGPTConfig(
    vocab_size=448,
    n_positions=64,
    n_embd=32,
    n_layer=2,
    n_head=2,
    rotary_dim=8,
    attn_pdrop=0.1,
    embd_pdrop=0.1,
    initializer_range=0.3,
)

SENTENCES = [
    "처음부터 끝까지 눈을 뗄 수 없었다. 정말 재미있는 영화!",
    "배우들의 연기는 좋았는데 이야기가 너무 뻔해서 아쉽네요..",
    "10점 만점에 2점도 아깝다 ㅋㅋㅋㅋ 시간 낭비 ㅠㅠ",
    "음악이 참 좋아서 두 번 봤어요~ 한국어 영화 최고 😤",
    "인간처럼 생각하고, 행동하는 지능을 통해 인류가 이제까지 풀지 못했던",
]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """440 pieces of which 256 are bytes: a random model speaks in broken characters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(SENTENCES * 5, folder, vocab_size=440, character_coverage=1.0)
    return load_tokenizer(folder)


@pytest.fixture
def read_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queues each step before the last one's token is known, as on a GPU."""
    monkeypatch.setattr(loop, "reads_on", lambda device: True)


@pytest.fixture(scope="session")
def model() -> KoGPT:
    """Eight rows have no piece, and the bias of the head makes them the most probable."""
    torch.manual_seed(0)
    model = KoGPT(TINY).requires_grad_(False)
    model.lm_head.bias[440:] = 20.0
    return model.eval()


@pytest.fixture(scope="session")
def no_end(tokenizer: Tokenizer) -> dict[int, float]:
    """A logit bias under which a text does not end by itself."""
    assert tokenizer.eos_id is not None
    return {tokenizer.eos_id: float("-inf")}
