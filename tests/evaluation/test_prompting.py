"""From rows to ids, against the harness's rule and by trying all numbers of shots."""

import json
import random

import pytest

from kogpt.errors import InputRefusedError
from kogpt.evaluation.data import Row
from kogpt.evaluation.prompting import Encoder, Question, ask, ask_nothing, detokenize, example
from kogpt.evaluation.task import Prompt, load_task
from kogpt.tokenizer import ByteLevelTokenizer, Tokenizer, load_tokenizer
from tests.scale import scaled
from tests.tokenizer.conftest import SENTENCES, reviews, write_byte_level

BORDERS = ["", " ", "  ", "\n", "\n\n", " \n", "\t", "정답:", "한마디로", "("]
PARTS = [
    "가",
    "영화",
    "재미있는",
    "뷁",
    "ㅋㅋㅋ",
    " ",
    "  ",
    "\n",
    ".",
    "..",
    "?!",
    "2점",
    "abc",
    "😤",
]


def byte_level(folder, **companions):
    """A byte-level tokenizer whose merges join words with the spaces before them."""
    write_byte_level(folder, vocab_size=900)
    (folder / "tokenizer_config.json").write_text(json.dumps(companions))
    return ByteLevelTokenizer(folder)


@pytest.fixture(scope="module", params=["box", "byte-level", "byte-level-bos"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    if request.param == "box":
        return load_tokenizer()
    folder = tmp_path_factory.mktemp("byte-level")
    return byte_level(folder, add_bos_token=request.param.endswith("bos"))


def pair_of_the_harness(tokenizer, context, continuation):
    """`_encode_pair` of the harness: spaces that end the context go over, ids part by count."""
    spaces = len(context) - len(context.rstrip())
    if spaces > 0:
        continuation = context[-spaces:] + continuation
        context = context[:-spaces]
    bos = tokenizer.add_bos
    whole = tokenizer.encode(context + continuation, bos=bos)
    first = tokenizer.encode(context, bos=bos)
    return first, whole[len(first) :], whole


def texts(count, seed):
    """Texts from made-up parts, and sentences of people in between."""
    rng = random.Random(seed)
    for _ in range(count):
        yield "".join(rng.choices(PARTS, k=rng.randrange(12)))
        words = rng.choice(SENTENCES).split(" ")
        start = rng.randrange(len(words))
        yield " ".join(words[start : start + rng.randrange(1, 9)])


def questions(count, seed):
    """Contexts with one to four answers."""
    rng = random.Random(seed)
    for context in texts(count, seed):
        parts = [rng.choice((" ", "", "  ")) + rng.choice(PARTS) for _ in range(4)]
        ends = [rng.choice(("", "다.", " 음")) for _ in range(4)]
        answers = [part + end for part, end in zip(parts, ends, strict=True)]
        yield Question(context + rng.choice(BORDERS), tuple(answers[: rng.randrange(1, 5)]))


def check(tokenizer, question):
    """Compares ids with the harness's; whether no token lay across a border."""
    query = Encoder(tokenizer, 1024).encode(question)
    pairs = [pair_of_the_harness(tokenizer, question.context, a) for a in question.answers]
    wholes = [whole for _, _, whole in pairs]
    clean = all(whole[: len(first)] == first for first, _, whole in pairs)
    beginning = tokenizer.bos_id if not pairs[0][0] else None
    if clean:
        context = [beginning] if beginning is not None else pairs[0][0]
        assert list(query.context) == context
        assert [list(ids) for ids in query.continuations] == [ids for _, ids, _ in pairs]
    else:
        joint = [[*query.context, *ids] for ids in query.continuations]
        assert joint == wholes or joint == [[tokenizer.bos_id, *whole] for whole in wholes]
    return clean


def test_ids_are_the_harnesss_wherever_no_token_lies_across_the_border(tokenizer):
    count = scaled(750, 20_000)
    clean = [check(tokenizer, question) for question in questions(count, seed=0)]
    # Both cases are met, and the first is the rule.
    assert len(clean) == 2 * count and len(clean) / 2 < sum(clean) < len(clean)


def test_ids_of_real_reviews_are_the_harnesss(tokenizer):
    prompts = load_task("nsmc").prompts.values()
    for index, text in enumerate(reviews(scaled(400, 10_000))):
        row = Row(index, {"document": text}, frozenset({"document"}), 0)
        for prompt in prompts:
            assert check(tokenizer, ask(prompt, row))


def test_a_token_across_the_border_belongs_to_the_answers(tmp_path):
    backend = byte_level(tmp_path)
    (joined,) = backend.encode(" 수")
    # A context that ends in a space, as KoBEST's BoolQ has it, leaves the space to the answer ...
    query = Encoder(backend, 99).encode(Question("가 ", ("수", "뷁")))
    assert query.context == tuple(backend.encode("가"))
    assert query.continuations[0] == (joined,)
    # ... and letters that merge with one answer are scored with all.
    (merged,) = backend.encode(" 있는")
    assert len(backend.encode(" 있")) > 1
    query = Encoder(backend, 99).encode(Question("끝 있", ("는", "뷁")))
    assert query.context == tuple(backend.encode("끝"))
    assert query.continuations == ((merged,), tuple(backend.encode(" 있뷁")))


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("context", ["", "  ", "\n"])
def test_an_empty_context_is_the_beginning_of_a_text(bos, context, tmp_path):
    backend = byte_level(tmp_path, add_bos_token=bos)
    query = Encoder(backend, 99).encode(Question(context, (" 예", " 아니오")))
    assert query.context == (backend.bos_id,)
    for answer, ids in zip((" 예", " 아니오"), query.continuations, strict=True):
        assert list(ids) == backend.encode(context + answer)


def test_where_there_is_no_bos_an_eos_begins_a_text_and_without_either_nothing_does(tmp_path):
    backend = byte_level(tmp_path)
    names = tmp_path / "special_tokens_map.json"
    names.write_text('{"eos_token": "[EOS]"}')
    (tmp_path / "tokenizer_config.json").unlink()
    backend = ByteLevelTokenizer(tmp_path)
    query = Encoder(backend, 99).encode(Question("", (" 예",)))
    assert backend.bos_id is None and query.context == (backend.eos_id,)
    names.write_text("{}")
    with pytest.raises(InputRefusedError, match="a prompt is empty, and the tokenizer has no bos"):
        Encoder(ByteLevelTokenizer(tmp_path), 99).encode(Question("", (" 예",)))


@pytest.mark.parametrize("separator", ["\n\n", "\n", " ### ", ""])
def test_shots_and_question_are_one_text_with_separators_between(tokenizer, separator):
    shots = ["정말 재미있다 최고", "돈이 아깝다 ( 나쁨 )", "그저 그렇다 최악"]
    question = Question("음악이 좋다 한마디로", (" 최악", " 최고"))
    text = separator.join([*shots, question.context])
    query = Encoder(tokenizer, 999, separator).encode(question, shots)
    for answer, ids in zip(question.answers, query.continuations, strict=True):
        assert [*query.context, *ids] == tokenizer.encode(text + answer, bos=tokenizer.add_bos)
        assert tokenizer.decode([*query.context, *ids]) == text + answer


def fitting(encoder, question, shots):
    """All numbers of last shots that fit."""
    return [
        count
        for count in range(len(shots) + 1)
        if encoder.encode(question, shots[len(shots) - count :]).num_read <= encoder.n_positions
    ]


@pytest.mark.parametrize("separator", ["\n\n", " ", ""])
def test_as_many_of_the_last_shots_are_kept_as_fit(tokenizer, separator):
    rng = random.Random(1)
    met = set()
    for _ in range(scaled(25, 1000)):
        drawn = [text for text in texts(20, rng.random()) if text][: rng.randrange(40)]
        length = rng.choice((1, 3, 99))  # of a shot, in words
        shots = [" ".join(text.split(" ")[:length]) for text in drawn]
        question = next(questions(1, rng.random()))
        encoder = Encoder(tokenizer, rng.choice((5, 20, 80, 300)), separator)
        fit, counts = encoder.fit(question, shots), fitting(encoder, question, shots)
        if 0 not in counts:
            assert fit is None
            met.add("nothing")
            continue
        query, used = fit
        assert query == encoder.encode(question, shots[len(shots) - used :])
        assert used in counts and used + 1 not in counts
        # Where texts do not merge with what parts them, more of them never take less room.
        assert used == max(counts) or separator != "\n\n"
        met.add("all" if used == len(shots) else "some")
    assert met == {"nothing", "some", "all"}


@pytest.mark.parametrize(
    "shot", ["좋다 최고", "뷁", "아주 긴 영화평이지만 그래도 끝까지 읽어 주세요 최고"]
)
def test_separators_take_their_room_among_many_short_shots(shot):
    encoder = Encoder(load_tokenizer(), 256)
    question = Question("별로 한마디로", (" 최악", " 최고"))
    query, used = encoder.fit(question, [shot] * 200)
    assert used == max(fitting(encoder, question, [shot] * 200)) > 10
    assert query.num_read > 256 - len(encoder.tokenizer.encode(f"\n\n{shot}")) - 1


def test_the_context_holds_all_that_is_read_and_the_last_id_is_not(tokenizer):
    question = Question("별로 한마디로", (" 최악", " 최고", " 뷁"))
    query = Encoder(tokenizer, 999).encode(question)
    longest = max(len(query.context) + len(ids) for ids in query.continuations)
    assert query.num_read in (longest - 1, len(query.stem))
    assert Encoder(tokenizer, query.num_read).fit(question) == (query, 0)
    assert Encoder(tokenizer, query.num_read - 1).fit(question) is None
    assert Encoder(tokenizer, query.num_read).fit(question, ["가"]) == (query, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("do n't", "don't"),
        ("가 n'tn't", "가n'tn't"),
        ("( 10점 )", "(10점)"),
        ("(10점)", "(10점)"),
        ("가 ( 나 ) 다", "가 (나) 다"),
        ('그 " 명작 " 이다', '그"명작"이다'),
        ('그 "명작" 이다', '그"명작"이다'),
        ("이게 '명작' 이다", "이게'명작' 이다"),
        ("아깝다 .", "아깝다."),
        ("아깝다 . .", "아깝다.."),
        ("아깝다 ..", "아깝다.."),
        ("아깝다  .", "아깝다 ."),
        ("가 , 나 ! 다 ?", "가, 나 ! 다 ?"),
        ("그저 .좋다", "그저.좋다"),
        ("가\n. 나", "가\n. 나"),
        ("  ", "  "),
        ("", ""),
    ],
)
def test_detokenizing_drops_the_spaces_that_the_harness_drops(text, expected):
    assert detokenize(text) == expected


PROMPT = Prompt("p", "nobody", "{a}|{b}", (" {c}", " 예"), ("  {c}", "  예"))
ROW = Row(7, {"a": "가 .", "b": "그래서", "c": "나 ,"}, frozenset("ac"), 0)


def test_a_row_is_filled_in_as_it_is_unless_the_prompt_detokenizes():
    assert ask(PROMPT, ROW) == Question("가 .|그래서", (" 나 ,", " 예"))
    assert example(PROMPT, ROW) == "가 .|그래서  나 ,"
    prompt = Prompt("p", "nobody", "{a} . {b}", (" {c}", " 예"), ("  {c}", "  예"), detokenize=True)
    # Fields alone: what the template says stays.
    assert ask(prompt, ROW) == Question("가. . 그래서", (" 나,", " 예"))
    assert example(prompt, ROW) == "가. . 그래서  나,"


def test_a_text_with_braces_is_text():
    row = Row(0, {"a": "{b} {0} {{", "b": "}", "c": "{c"}, frozenset("abc"), 0)
    assert ask(PROMPT, row) == Question("{b} {0} {{|}", (" {c", " 예"))


def test_nothing_is_asked_by_texts_that_say_nothing_before_the_rows_own_answers():
    answers = (" 나 ,", " 예")
    contexts = ["N/A|그래서", "|그래서", "[MASK]|그래서"]
    assert ask_nothing(PROMPT, ROW) == [Question(context, answers) for context in contexts]


@pytest.mark.parametrize("prompt", ["kogpt", "polyglot", "harness-main"])
def test_cause_and_result_are_no_texts_and_stay_when_nothing_is_asked(prompt):
    task = load_task("kobest_copa")
    fields = {"premise": "가", "connector": "그래서", "lead": "그 결과"}
    answers = {"alternative_1": "나", "alternative_2": "다"}
    row = Row(0, {**fields, **answers}, frozenset({"premise", *answers}), 1)
    asked = ask_nothing(task.prompts[prompt], row)
    whole = ask(task.prompts[prompt], row)
    assert {question.answers for question in asked} == {whole.answers} == {(" 나", " 다")}
    rest = whole.context.removeprefix("가")
    assert [question.context for question in asked] == [f"N/A{rest}", rest, f"[MASK]{rest}"]


def test_a_typed_special_token_is_text_to_the_encoder(tokenizer):
    query = Encoder(tokenizer, 99).encode(Question("[BOS] [EOS]", (" [EOS]",)))
    ids = [*query.context, *query.continuations[0]][int(tokenizer.add_bos) :]
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
