"""What pictures need: matplotlib, and fonts with Hangul, from what is installed."""

import unicodedata
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kogpt.errors import KoGPTError

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

# Fonts with Hangul by their files' names, those made for screens first.
KNOWN = ("Pretendard", "NotoSansKR", "NotoSansCJK", "NanumGothic", "AppleSDGothicNeo", "malgun")


def require_matplotlib(extra: str = "train", otherwise: str = "") -> None:
    """Finds out before anything is computed whether pictures can be drawn.

    Args:
        extra: of the package, with which it is installed.
        otherwise: what to do without.

    Raises:
        KoGPTError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise KoGPTError(f"pictures need matplotlib: pip install 'kogpt[{extra}]'{otherwise}")


def families(*texts: str) -> list[str]:
    """Names of fonts that have what is in the texts, as far as any that is installed has it."""
    try:
        font, _ = find_font(set("".join(texts)))
    except KoGPTError:  # of a picture that tells enough without those names
        return ["DejaVu Sans"]
    return font.get_family()


def find_font(
    characters: set[str], paths: Iterable[str] | None = None
) -> "tuple[FontProperties, frozenset[str]]":
    """A font with Hangul, others for what it has not, and the characters that none has.

    Args:
        characters: that are to be drawn.
        paths: of the font files to choose from; None for all that are installed.

    Raises:
        KoGPTError: there is Hangul among the characters, and no font has it.
    """
    from matplotlib import font_manager

    if paths is None:
        # Not the manager's own list, which is kept on the disk and may be older than the fonts.
        paths = sorted(set(font_manager.findSystemFonts()), key=_order)
    shipped = font_manager.findfont("DejaVu Sans")
    names, missing = [], set(characters)
    for path in (*paths, shipped):
        has = _characters_of(path)
        # The first has Hangul if there is any, so that words are of one font.
        wanted = set(filter(_is_hangul, missing)) or missing
        if wanted & has:
            font_manager.fontManager.addfont(path)
            names.append(font_manager.FontProperties(fname=path).get_name())
            missing -= has
        if not missing:
            break
    if hangul := "".join(sorted(filter(_is_hangul, missing))):
        raise KoGPTError(
            f"no installed font has the Hangul of the picture ({hangul[:8]}): install one, as with"
            " apt-get install fonts-nanum"
        )
    # The shipped one comes first: its signs are narrow, where Korean fonts have some full width.
    family = [*dict.fromkeys(["DejaVu Sans", *names])]
    return font_manager.FontProperties(family=family), frozenset(missing)


def _characters_of(path: str) -> set[str]:
    """What a font can draw; nothing if it cannot be read, or is of coloured pictures."""
    from matplotlib.ft2font import FT2Font

    if "emoji" in Path(path).stem.lower():
        return set()
    try:
        return set(map(chr, FT2Font(path).get_charmap()))
    except (OSError, RuntimeError):
        return set()


def _is_hangul(character: str) -> bool:
    return "HANGUL" in unicodedata.name(character, "")


def _order(path: str) -> tuple[int, str]:
    """Known fonts first, each in its regular weight."""
    name = Path(path).stem
    for place, known in enumerate(KNOWN):
        if name.startswith(known):
            return 2 * place + (name not in (known, f"{known}-Regular")), path
    return 2 * len(KNOWN), path
