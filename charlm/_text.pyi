"""Text to tokens, line framing, the index of distinct contexts, and texts drawn from probabilities (csrc/text).

Tokens are uint8, int16 or int32, by `token_size` 1, 2 or 4; line ends and indices are int32 or int64, by `index_size` 4
or 8. Arrays come in as contiguous buffers and go out as bytearrays. The text is UTF-8, its lines are separated by
"\\n", stripped of trailing white space, and left out where blank.
"""

from typing_extensions import Buffer

class InvalidUtf8(ValueError):
    """Its argument is the byte offset of what is not UTF-8."""

class UnknownCharacter(ValueError):
    """Its argument is the byte offset of a character that has no token."""

class UnknownToken(ValueError):
    """Its argument is the position of a token that stands for no character."""

class Codec:
    """Token i stands for characters[i]; the characters are sorted and distinct."""

    def __init__(self, characters: str) -> None: ...
    @property
    def token_size(self) -> int:
        """Bytes of the smallest token type that holds every token."""

    def encode(self, utf8: bytes) -> bytearray:
        """The tokens, one per character."""

    def encode_lines(self, utf8: bytes, index_size: int) -> tuple[bytearray, bytearray]:
        """The tokens of all lines, one line after the other, and where each line ends in them."""

    def decode(self, tokens: Buffer) -> str: ...

class Sampler:
    """Draws many texts from tables of next-token probabilities, one table per context of `context_length` tokens.

    `start`, then `advance` and `add` what it asks for while any are `unfinished`, then `texts`. At most `max_contexts`
    tables are kept: when a text needs one more, all are dropped. For one thread at a time: RuntimeError in another.
    """

    def __init__(self, characters: str, context_length: int, max_contexts: int) -> None: ...
    def start(self, context: Buffer, seed: int, first: int, count: int, max_tokens: int, end: int) -> None:
        """Begins the texts number first .. first + count - 1, which continue `context` (context_length,) int32 up to
        the token `end`, -1 for none, or to `max_tokens` tokens. A text depends on its number and 0 <= seed < 2^64.
        """

    def advance(self) -> bytearray:
        """Continues the texts, by 2^24 tokens in all at most; the contexts (M, T) int32 whose tables are missing."""

    def add(self, weights: Buffer) -> None:
        """Tables for the first K of the missing contexts: (K, V) float64, each row proportional to probabilities."""

    @property
    def unfinished(self) -> int:
        """The number of texts that have not ended."""

    def texts(self, prefix: str) -> list[str]:
        """`prefix` and what was drawn after it, without the context."""

def find_not_text(data: bytes) -> int:
    """The offset of the first byte that is NUL or not UTF-8, -1 if there is none."""

def distinct_characters(utf8: bytes, *, by_line: bool) -> str:
    """The distinct characters, sorted: of the whole text or, `by_line`, of its lines only."""

def frame_lines(
    token_size: int,
    index_size: int,
    tokens: Buffer,
    ends: Buffer,
    order: Buffer,
    context_length: int,
    boundary: int,
) -> tuple[bytearray, bytearray]:
    """The lines order[0], order[1], ..., each as `context_length` boundaries and its tokens, then one boundary; and the
    number of examples up to and including each line. `tokens` and `ends` are those of `Codec.encode_lines`.
    """

def distinct_contexts(
    token_size: int, index_size: int, tokens: Buffer, ends: Buffer, context_length: int, vocab_size: int
) -> tuple[bytearray, bytearray, bytearray, bytearray, bytearray]:
    """Where each of U distinct contexts first starts (U,) int64, the context of each example (N,), and the counts of
    their targets in CSR form: row_ptr (U+1,) int64, targets (nnz,) as tokens, counts (nnz,) int64.

    `ends` is the number of examples up to and including each line; the tokens are those of a vocabulary of
    `vocab_size`.
    """
