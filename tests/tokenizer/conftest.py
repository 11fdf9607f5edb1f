"""Small tokenizers of every kind, each beside the library that is its oracle."""

import io
import json
import lzma
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

import kogpt
from kogpt.tokenizer import ByteLevelTokenizer, SentencePieceTokenizer, Tokenizer
from tests.shared import shared

NANO = Path(kogpt.__file__).parent / "nano"
EMOTICONS = ["😤", ":)", "l^o", "ㅇㅅㅇ"]
NAMES = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]", "pad_token": "[PAD]"}

SYLLABLES = [chr(code) for code in range(ord("가"), ord("힣") + 1)]

SENTENCES = [
    "안녕하세요. 한국어 GPT-2 입니다.😤:)l^o",
    "처음부터 끝까지 눈을 뗄 수 없었다. 정말 재미있는 영화!",
    "배우들의 연기는 좋았는데 이야기가 너무 뻔해서 아쉽네요..",
    "10점 만점에 2점도 아깝다 ㅋㅋㅋㅋ 시간 낭비 ㅠㅠ",
    "  앞에 빈칸 둘,   가운데 셋, 뒤에 하나 ",
    "음악이 참 좋아서 두 번 봤어요~ ㅇㅅㅇ",
    "뷁쉛쮊 같은 글자와 Ünïcödé, 漢字, かな, 🇰🇷 그리고 👨\u200d👩\u200d👧",
    "탭\t과 줄바꿈\n이 있는 글\r\n끝",
    "인간처럼 생각하고, 행동하는 '지능'을 통해 인류가 이제까지 풀지 못했던",
]


@dataclass(frozen=True)
class Backend:
    """Our tokenizer, and what the library alone makes of the same file."""

    tokenizer: Tokenizer
    library: Any
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]


def write_byte_level(out: Path, vocab_size: int = 420, texts: Iterable[str] = SENTENCES) -> Path:
    """A tokenizer.json of the released kind: byte-level BPE, raw emoticons as added tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(text, normalized=False) for text in EMOTICONS])
    backend.save(str(out / "tokenizer.json"))
    (out / "special_tokens_map.json").write_text(json.dumps(NAMES))
    return out


def write_sentencepiece(out: Path, **options: object) -> Path:
    """A tokenizer.model with sentencepiece's own defaults, except where told otherwise."""
    model = io.BytesIO()
    defaults = {"vocab_size": 600, "hard_vocab_limit": False, "byte_fallback": True, "pad_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3),
        model_writer=model,
        minloglevel=2,
        **defaults | options,
    )
    (out / "tokenizer.model").write_bytes(model.getvalue())
    return out


def byte_level_backend(directory: Path) -> Backend:
    library = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    library.encode_special_tokens = True
    return Backend(
        ByteLevelTokenizer(directory),
        library,
        lambda text: library.encode(text, add_special_tokens=False).ids,
        library.decode,
    )


def sentencepiece_backend(directory: Path) -> Backend:
    library = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    return Backend(SentencePieceTokenizer(directory), library, library.encode, library.decode)


# The ways in which sentencepiece models treat spaces; the first is that of Llama's.
SENTENCEPIECE_KINDS = {
    "dummy-prefix": {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "user_defined_symbols": ["▁▁", "<mask>"],
    },
    "defaults": {},
    "no-prefix": {"add_dummy_prefix": False},
    "unigram": {"model_type": "unigram"},
    "suffix": {"treat_whitespace_as_suffix": True, "allow_whitespace_only_pieces": True},
    "no-bytes": {"byte_fallback": False, "vocab_size": 150},
}


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return byte_level_backend(write_byte_level(tmp_path_factory.mktemp("byte-level")))


@pytest.fixture(scope="session")
def nano() -> Backend:
    return sentencepiece_backend(NANO)


@pytest.fixture(scope="session")
def release() -> Backend:
    return byte_level_backend(Path(os.environ["KOGPT_RELEASE_DIR"]))


# Both kinds, and the released tokenizer where a person has it.
BACKENDS = ["byte_level", "nano", *(["release"] if "KOGPT_RELEASE_DIR" in os.environ else [])]


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="session", params=[*BACKENDS, *SENTENCEPIECE_KINDS])
def any_backend(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Backend:
    if request.param in BACKENDS:
        return request.getfixturevalue(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    return sentencepiece_backend(
        write_sentencepiece(directory, **SENTENCEPIECE_KINDS[request.param])
    )


def reviews(count: int) -> list[str]:
    """The first reviews of the corpus beside the checkout; skips the test where there is none."""
    with lzma.open(shared("data", "nsmc", "reviews.tsv.xz"), "rt", encoding="utf-8") as lines:
        next(lines)
        return [line.rstrip("\n").split("\t")[2] for line in islice(lines, count)]
