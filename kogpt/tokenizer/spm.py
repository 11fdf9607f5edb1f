from pathlib import Path

import sentencepiece

from kogpt.tokenizer.base import Tokenizer


class SentencePieceTokenizer(Tokenizer):
    def __init__(self, directory):
        self._p = sentencepiece.SentencePieceProcessor(model_file=str(Path(directory) / "tokenizer.model"))
        self.vocab_size = self._p.vocab_size()

    def _encode(self, text, allow_special):
        return self._p.encode(text)
    def stream_decoder(self, *, skip_special=True): ...
    def id_to_piece(self, id): ...
    def piece_to_id(self, piece): ...
    def token_bytes(self, id): ...
