class StreamDecoder:
    pass
