"""The tokenizer of the release: byte-level BPE in a tokenizer.json."""

from tokenizers import pre_tokenizers

from kogpt.tokenizer.jsonfile import JSONTokenizer
from kogpt.tokenizer.streaming import StreamDecoder


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: a printable Latin-1 character stands for its own byte, and the characters
    from U+0100 on stand for the other bytes in their order (space, 0x20, is "Ġ")."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    own = {letter: ord(letter) for letter in letters if ord(letter) < 256}
    others = [byte for byte in range(256) if byte not in own.values()]
    return own | dict(zip(letters[len(own) :], others, strict=True))


BYTE_OF_LETTER = _byte_of_letter()


class ByteLevelTokenizer(JSONTokenizer):
    """A byte-level BPE `tokenizer.json`; for arguments and errors see `JSONTokenizer`."""

    decoder = "ByteLevel"

    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        return StreamDecoder(self.token_bytes if skip_special else self._written_bytes)

    def _written_bytes(self, id: int) -> bytes:
        piece = self.id_to_piece(id)
        try:
            return bytes(BYTE_OF_LETTER[letter] for letter in piece)
        except KeyError:  # an added token holds plain text, such as an emoji
            return piece.encode()
