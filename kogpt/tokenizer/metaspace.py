"""The tokenizer of KoGPT2: BPE of characters in a tokenizer.json, spaces written as "▁"."""

from pathlib import Path

from kogpt.tokenizer.jsonfile import JSONTokenizer
from kogpt.tokenizer.streaming import StreamDecoder


class MetaspaceTokenizer(JSONTokenizer):
    """A BPE `tokenizer.json` whose pieces are plain text, but for spaces.

    For arguments and errors see `JSONTokenizer`. What no piece covers becomes the unknown token, as
    the library has it.
    """

    decoder = "Metaspace"

    def __init__(self, directory: str | Path) -> None:
        super().__init__(directory)
        decoder = self._backend.decoder
        self.space: str = decoder.replacement
        self.takes_first: bool = decoder.prepend_scheme != "never"

    def stream_decoder(self, *, skip_special: bool = True) -> StreamDecoder:
        return MetaspaceStream(self, skip_special)

    def _written_bytes(self, id: int) -> bytes:
        return self.id_to_piece(id).replace(self.space, " ").encode()


class MetaspaceStream(StreamDecoder):
    """Takes away the space that the library puts in front of every text."""

    def __init__(self, tokenizer: MetaspaceTokenizer, skip_special: bool) -> None:
        super().__init__(tokenizer.token_bytes if skip_special else tokenizer._written_bytes)
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._at_start = tokenizer.takes_first

    def push(self, id: int) -> str:
        text = super().push(id)
        if not self._at_start or (self._skip_special and id in self._tokenizer.special_ids):
            return text
        self._at_start = False
        # Not only the first: so does the library.
        return self._tokenizer.id_to_piece(id).replace(self._tokenizer.space, "")
