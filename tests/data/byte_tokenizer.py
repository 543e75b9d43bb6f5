"""A tokenizer whose tokens anyone can compute: the UTF-8 bytes of the text, and 256 for BOS."""


class ByteTokenizer:
    """Implements `WindowTokenizer`; `batches` records the texts of each call."""

    vocabulary_size = 257

    def __init__(self, window_prefix: tuple[int, ...] = (256,), fingerprint: str = "bytes") -> None:
        self.window_prefix = window_prefix
        self.fingerprint = fingerprint
        self.batches: list[list[str]] = []

    def encode_batch(self, texts: list[str], *, continued: bool = False, control: bool = False) -> list[list[int]]:
        self.batches.append(texts)
        return [list(text.encode()) for text in texts]
