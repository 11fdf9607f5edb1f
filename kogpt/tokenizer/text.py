"""Text as it arrives: half characters are refused, decomposed Hangul is composed."""

import re
import unicodedata

from kogpt.errors import InputRefusedError, ParameterError

# Hangul written as separate consonants and vowels, as macOS does in file names and in text pasted
# from them. NFC turns each group into one syllable; without it, a model reads it as bytes.
CONJOINING_JAMO = re.compile("[\u1100-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")

# Half of a UTF-16 pair, or (dc80-dcff) a byte that was not UTF-8: what a terminal without IUTF8
# leaves of a syllable deleted with Backspace. No encoding of Unicode can carry it.
SURROGATE = re.compile("[\ud800-\udfff]")


def has_conjoining_jamo(text: str) -> bool:
    """Whether `text` holds Hangul in pieces (NFD), which models have hardly ever seen."""
    return CONJOINING_JAMO.search(text) is not None


def normalize_text(text: str, form: str = "nfc") -> str:
    """Text in the form that models were trained on.

    Args:
        text: Any text.
        form: "nfc" composes everything, "auto" composes a text that holds conjoining jamo and
            leaves any other as it is, "none" changes nothing. Case does not matter.

    Raises:
        InputRefusedError: The text holds lone surrogates; names the first of them.
        ValueError: No such form.
    """
    refuse_surrogates(text)
    match form.lower():
        case "nfc":
            return unicodedata.normalize("NFC", text)
        case "auto":
            return unicodedata.normalize("NFC", text) if has_conjoining_jamo(text) else text
        case "none":
            return text
    raise ParameterError(f"normalization must be auto, nfc or none, not {form!r}")


def refuse_surrogates(text: str) -> None:
    """Raises InputRefusedError, naming code points and position, if text holds half characters."""
    found = SURROGATE.findall(text)
    if not found:
        return
    names = ", ".join(f"U+{ord(char):04X}" for char in found[:4])
    more = f" and {len(found) - 4} more" if len(found) > 4 else ""
    where = text.index(found[0])
    raise InputRefusedError(
        f"the text holds half characters (lone surrogates {names}{more}, the first at index "
        f"{where}); probably a letter was deleted by bytes or the input is not UTF-8: type it again"
    )
