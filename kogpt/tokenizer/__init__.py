from kogpt.tokenizer.spm import SentencePieceTokenizer


def load_tokenizer(dir):
    return SentencePieceTokenizer(dir)
