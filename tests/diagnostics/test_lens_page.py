"""The page of the lens: nothing from outside, nothing from the prompt, and drawn by a browser."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
import torch

import kogpt
from kogpt.diagnostics import lens_page
from kogpt.diagnostics.lens import look
from kogpt.diagnostics.lens_page import packed, page, page_data, write_page
from kogpt.errors import InputRefusedError
from tests.diagnostics.browser import Node, browse, hangul_is_installed, read, screenshot

PROMPT = "이 영화는 정말 뚫떪 재미있"
HOSTILE = (
    "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"
    "<!--<script> @@DATA@@ @@SCRIPT@@ &lt;b&gt; \\u003c \" ' \u2028 한"
)


@pytest.fixture(scope="module")
def nano():
    return kogpt.load()


@pytest.fixture(scope="module")
def lens(nano):
    return look(*nano, PROMPT)


def test_the_page_needs_nothing_from_outside(lens):
    text = page(lens, "nano").replace(page_data(lens, "nano")["attention"], "")
    assert not re.search(r"https?:|[\"'(]//|\bsrc\s*=|\bhref\s*=|url\(|@import|import\(", text)
    assert "default-src 'none'" in text  # which has a browser refuse what the pattern overlooks
    assert "@@" not in text


def test_no_prompt_breaks_out_of_the_data(nano):
    lens = look(*nano, HOSTILE)
    text = page(lens, "nano")
    assert text.lower().count("<script") == text.lower().count("</script") == 2
    assert "<img" not in text and "<!--" not in text
    data = re.search('<script type="application/json" id="data">(.*)</script>', text)
    found = json.loads(data.group(1))
    assert found == json.loads(json.dumps(page_data(lens, "nano")))
    assert found["prompt"] == HOSTILE


def test_attention_that_looks_ahead_is_whole_in_the_page_however_little_it_looks(lens):
    assert page_data(lens, "nano")["causal"]
    weights = lens.attention.clone()
    weights[0, 0, 0, 1] = 1e-3  # of one head, to the next token
    data = page_data(dataclasses.replace(lens, attention=weights), "nano")
    assert not data["causal"] and data["attention"] == packed(weights, causal=False)


def test_the_page_has_what_the_lens_has(nano):
    lens = look(*nano, PROMPT, last=8)
    data, whole = page_data(lens, "nano"), lens.to_dict()
    assert (data["prompt"], data["skipped"], data["shape"]) == (PROMPT, 2, whole["model"])
    for token, one in zip(data["tokens"], whole["tokens"], strict=True):
        one["label"], one["bytes"] = one.pop("piece"), bytes.fromhex(one["bytes"]).hex(" ").upper()
        assert token == one
    found, expected = (sum(layers, []) for layers in (data["layers"], whole["layers"]))
    for cell, one in zip(found, expected, strict=True):
        for (id, probability, *completes), likely in zip(cell["top"], one["top"], strict=True):
            assert id == likely["id"]
            assert probability == pytest.approx(likely["probability"], abs=6e-6)
            assert completes == [*filter(None, [likely.get("completes")])]
        assert cell["entropy"] == pytest.approx(one["entropy"], abs=6e-4)
        following = list(one["next"].values()) if one["next"] else None
        assert cell["next"] == (following and pytest.approx(following, abs=6e-6))
    assert any(len(likely) == 3 for cell in found for likely in cell["top"])


@pytest.mark.parametrize("causal", [True, False])
def test_packed_weights_are_the_weights_to_16_bits(causal):
    weights = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    numbers = np.frombuffer(base64.b64decode(packed(weights, causal)), "<u2") / 65535
    rows, columns = np.tril_indices(5) if causal else map(np.ravel, np.indices((5, 5)))
    expected = weights.numpy()[:, :, rows, columns]
    assert np.abs(numbers.reshape(expected.shape) - expected).max() < 0.501 / 65535


def test_weights_beyond_what_a_page_holds_are_refused(lens, monkeypatch, tmp_path):
    monkeypatch.setattr(lens_page, "MAX_BYTES", 1000)
    with pytest.raises(InputRefusedError, match="10 tokens, 6 layers and 4 heads are too many"):
        write_page(lens, tmp_path / "lens.html", "nano")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("causal", "size"), [(True, 2 * 6 * 15), (False, 2 * 6 * 25)])
def test_a_page_holds_as_many_bytes_of_weights_as_it_may_and_not_one_more(
    causal, size, monkeypatch
):
    weights = torch.zeros(2, 3, 5, 5)
    monkeypatch.setattr(lens_page, "MAX_BYTES", size)
    assert len(base64.b64decode(packed(weights, causal))) == size
    monkeypatch.setattr(lens_page, "MAX_BYTES", size - 1)
    with pytest.raises(InputRefusedError, match="5 tokens, 2 layers and 3 heads are too many"):
        packed(weights, causal)


def test_no_more_than_64_mib_of_weights_are_put_into_a_page():
    weights = torch.zeros(()).expand(1, 1, 5793, 5793)  # 2 * 5792 ** 2 bytes are just below
    with pytest.raises(InputRefusedError, match="5793 tokens, 1 layers and 1 heads are too many"):
        packed(weights, causal=False)


# What somebody does with the page: from the head that the address names up and to the left, then
# to the prediction behind the tenth token.
USER = """
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key}));
document.querySelector("#heads [aria-pressed=true]").focus();
press("ArrowUp");
press("ArrowLeft");
document.querySelectorAll("#layers tbody td")[9].focus();
"""


@pytest.fixture(scope="module")
def seen(nano):
    """A prompt of everything that could go wrong."""
    return look(*nano, f"뚫떪 재미있{HOSTILE}")


@pytest.fixture(scope="module")
def root(seen, tmp_path_factory) -> Node:
    """Its page as a browser leaves it, after the user."""
    path = tmp_path_factory.mktemp("browser") / "lens.html"
    text = page(seen, "nano").replace("</body>", f"<script>{USER}</script></body>")
    path.write_text(text, encoding="utf-8")
    address = "#layer=6&head=3&token=4&shade=next"
    return read(browse(path, "--dump-dom", "--window-size=1280,1600", address=address))


def test_a_browser_runs_the_page_to_its_end(root):
    assert root.find("html")[0].attributes.get("data-drawn") == "all"
    error = root.find("p#error")[0]
    assert "hidden" in error.attributes and error.text == ""


def test_a_narrow_page_tells_of_no_failure(nano, tmp_path):
    """What paints the matrix once its place has a width must not set itself off."""
    text = page(look(*nano, "이 영화는 정말 재미있고 결말이"), "nano")
    still = text.replace("new ResizeObserver(", "new (class {observe() {}})(")
    assert still != text
    tops = []
    for name, content in (("calm", text), ("still", still)):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "lens.html"
        path.write_text(content, encoding="utf-8")
        tops.append(screenshot(path, 360, 1400)[:700])
    assert np.array_equal(*tops)


def test_a_browser_shows_a_hostile_prompt_as_text(root, seen):
    assert root.find("h1#prompt")[0].text == seen.prompt
    assert root.find("title")[0].text == f"{seen.prompt[:60]} · KoGPT lens"
    assert not root.find("img") and len(root.find("script")) == 3  # one is the test's


def test_a_browser_shows_every_token_and_every_layers_prediction(root, seen):
    labels = [token.piece.label for token in seen.tokens]
    assert [node.text for node in root.find("div#tokens button")] == labels
    assert "\ufffd" not in root.find("body")[0].text
    cells = root.find("table#layers tbody td")
    expected = [seen.predictions(row, at)[0] for row in range(7) for at in range(len(labels))]
    assert [cell.find("span")[0].text for cell in cells] == [one["piece"] for one in expected]
    for cell, one in zip(cells, expected, strict=True):
        share = float(cell.find("small")[0].text.removesuffix(" %").removeprefix("<"))
        assert abs(share - 100 * one["probability"]) <= 0.51
    hits = [cell.attributes.get("class") == "hit" for cell in cells]
    ranks = seen.layers.next_rank.flatten().tolist()
    assert hits == [rank == 1 for rank in ranks] and any(hits)


def test_a_browser_follows_the_address_and_the_keyboard(root, seen):
    pressed = [node.attributes["aria-pressed"] for node in root.find("div#heads button")]
    assert len(pressed) == 24 and pressed.count("true") == 1
    assert pressed.index("true") == 4 * 4 + 1
    assert root.find("b#head-name")[0].text == "Layer 5, head 2"
    chosen = [node.attributes["aria-selected"] for node in root.find("div#tokens button")]
    assert chosen.index("true") == 3 and chosen.count("true") == 1
    labels = [token.piece.label for token in seen.tokens]
    best = int(seen.attention[4, 1, 3].argmax())
    assert root.find("p#pair")[0].text.startswith(f"From {labels[3]}: {labels[best]} ")
    inputs = root.find("fieldset#shades input")
    assert [node.attributes["value"] for node in inputs] == ["top", "next", "entropy"]


def test_a_browser_tells_the_likeliest_tokens_behind_the_one_in_focus(root, seen):
    tip = root.find("div#tip")[0]
    assert "hidden" not in tip.attributes
    assert tip.find("p")[0].text == f"embedding, behind {seen.tokens[9].piece.label}"
    found = [line.find("span")[0].text for line in tip.find("ol li")]
    assert found == [one["piece"] for one in seen.predictions(0, 9)]


def test_a_browser_draws_syllables_and_no_boxes(lens, tmp_path):
    if not hangul_is_installed():
        pytest.skip("no font with Hangul is installed")
    pictures = []
    for name, prompt in (("one", "가가가"), ("other", "뚝뚝뚝")):
        headed = dataclasses.replace(lens, prompt=prompt)  # and nothing else differs
        write_page(headed, tmp_path / f"{name}.html", "nano")
        pictures.append(screenshot(tmp_path / f"{name}.html", 600, 900))
    one, other = pictures
    differing = (one != other).any(-1)
    # Boxes of missing glyphs are all the same; the heading is 3 syllables of about 24 pixels.
    assert 100 < differing.sum() < 3 * 40 * 40
    rows, columns = np.nonzero(differing)
    assert rows.max() - rows.min() < 50 and columns.max() - columns.min() < 150
    colours = np.unique(one.reshape(-1, 3), axis=0)
    background = (one == one[0, 0]).all(-1).mean()
    assert len(colours) > 100 and 0.3 < background < 0.98
