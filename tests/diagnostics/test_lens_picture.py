"""The picture of the lens: every glyph drawn, or a clear word on what is missing."""

import warnings

import numpy as np
import pytest

import kogpt
from kogpt.cli import main
from kogpt.diagnostics.lens import look
from kogpt.diagnostics.lens_picture import draw_picture
from kogpt.errors import KoGPTError
from kogpt.pictures import find_font
from tests.diagnostics.browser import hangul_is_installed
from tests.diagnostics.tiny import tiny

pytest.importorskip("matplotlib")
needs_hangul = pytest.mark.skipif(
    not hangul_is_installed(), reason="no font with Hangul is installed"
)


@needs_hangul
def test_the_command_draws_a_picture_with_every_glyph_that_it_needs(tmp_path, capsys):
    from matplotlib.image import imread

    path = tmp_path / "lens.png"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's way to tell of boxes
        assert main(["lens", "$는$뚫떪😤", "--last", "6", "--png", str(path)]) == 0
    picture = imread(path)
    assert min(picture.shape[:2]) > 1000
    dark = (picture[..., :3].mean(-1) < 0.5).mean()
    assert 0.01 < dark < 0.5


@needs_hangul
@pytest.mark.parametrize(("length", "top"), [(1, 1), (30, 2)])
def test_prompts_of_one_token_and_of_many_are_drawn(tmp_path, length, top):
    from matplotlib.image import imread

    _, tokenizer = kogpt.load()
    lens = look(tiny(n_layer=1), tokenizer, [0, *[500] * (length - 1)], top=top, last=27)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_picture(lens, tmp_path / "lens.png", "nano")
    assert imread(tmp_path / "lens.png").std() > 0.01


def test_hangul_that_no_font_has_is_told_with_a_package_that_helps():
    with pytest.raises(KoGPTError, match=r"Hangul of the picture \(가나\).*fonts-nanum"):
        find_font(set("ab가나"), paths=[])


def test_other_characters_that_no_font_has_are_named_instead_of_drawn():
    font, missing = find_font(set("ab‹›␣\U0010fffd"), paths=[])
    assert missing == {"\U0010fffd"}
    assert font.get_family() == ["DejaVu Sans"]


@needs_hangul
def test_the_font_that_is_found_draws_syllables_apart(tmp_path):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    font, missing = find_font(set("가뚝"))
    assert not missing
    drawn = []
    for syllable in "가뚝":
        figure = Figure(figsize=(1, 1))
        figure.text(0.2, 0.2, syllable, fontproperties=font, size=40)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn.append(np.asarray(canvas.buffer_rgba()))
    assert (drawn[0] != drawn[1]).sum() > 100
