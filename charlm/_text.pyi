"""Text to tokens, line framing, the index of distinct contexts, and texts drawn from probabilities (csrc/text).

Tokens are uint8, int16 or int32, by `token_size` 1, 2 or 4; line ends and indices are int32 or int64, by `index_size` 4
or 8. Arrays come in as contiguous buffers and go out as bytearrays. The text is UTF-8, its lines are separated by
"\\n", stripped of trailing white space, and left out where blank.
"""

from typing_extensions import Buffer

class NotText(ValueError):
    """Its arguments are offset and value of a byte that is NUL or not UTF-8, and its line and column, from 1."""

class InvalidUtf8(ValueError):
    """Its argument is the byte offset of what is not UTF-8."""

class UnknownSymbol(ValueError):
    """Its arguments are the byte offset and the size of a character or word that has no token."""

class UnknownToken(ValueError):
    """Its argument is the position of a token that stands for nothing."""

class TextReader:
    """Reads a text in pieces: checks UTF-8, drops a byte order mark, makes "\n" of "\r\n" and "\r".

    A piece ends after one of the ASCII characters `cuts`, or after any character where there are none.
    """

    def __init__(self, cuts: str) -> None: ...
    def read(self, data: Buffer, last: bool) -> bytes:
        """Takes the next bytes, and returns the next piece, which may be empty; with the `last` all that is left."""

    @property
    def line(self) -> int:
        """Where the piece last returned begins, from 1."""

    @property
    def column(self) -> int:
        """The same, in characters of the line."""

class Counts:
    """Counts the symbols of a text, whose pieces are whole lines or, of words, end after white space.

    Args:
        tokens_are: "characters", "bytes" or "words".
        by_line: only those of lines count, without line ends, trailing white space and blank lines.
    """

    def __init__(self, tokens_are: str, *, by_line: bool) -> None: ...
    def add(self, piece: Buffer) -> None: ...
    def sorted(self) -> list[tuple[bytes, int]]:
        """The symbols of the text, or all bytes, with their counts."""

    @property
    def lines(self) -> int:
        """How many lines there are, `by_line`."""

    @property
    def tokens(self) -> int:
        """How many tokens there are."""

class Codec:
    """Token i stands for the i-th symbol. `unknown` is the token of all others, -1 for none."""

    @staticmethod
    def of_characters(characters: str, unknown: int = -1, absent: int = -1) -> Codec:
        """Of characters that are sorted and distinct; characters[absent] is as those that are not there."""

    @staticmethod
    def of_bytes() -> Codec: ...
    @staticmethod
    def of_words(words: list[str], unknown: int = -1) -> Codec:
        """Of words that are distinct, one of them "\n", the boundary."""

    @property
    def token_size(self) -> int:
        """Bytes of the smallest token type that holds every token."""

    def encode(self, utf8: bytes) -> bytearray:
        """The tokens of a whole text."""

    def decode(self, tokens: Buffer) -> bytes:
        """The text in UTF-8, or any bytes."""

class StreamEncoder:
    """Encodes a text piece by piece."""

    def __init__(self, codec: Codec) -> None: ...
    def add(self, piece: Buffer, tokens: Buffer) -> int:
        """Writes the tokens of the next piece into the array of all, and returns how many there are by now."""

class LineTotals:
    """Counts the lines and tokens of three splits."""

    def __init__(self, codec: Codec) -> None: ...
    def add(self, piece: Buffer, splits: Buffer, split: int) -> None:
        """Counts the next whole lines: line i goes into splits[i], uint8, or where that is empty into `split`; 255 is
        none.
        """

    @property
    def lines(self) -> tuple[int, int, int]: ...
    @property
    def tokens(self) -> tuple[int, int, int]: ...

class LineFramer:
    """Encodes lines piece by piece, each to its place: as `context_length` boundaries and its tokens, in the order of
    their splits; a boundary closes the last.
    """

    def __init__(
        self,
        codec: Codec,
        lines: tuple[int, int, int],
        tokens: tuple[int, int, int],
        context_length: int,
        boundary: int,
    ) -> None: ...
    @property
    def size(self) -> int:
        """The number of tokens there will be."""

    def add(self, piece: Buffer, splits: Buffer, split: int, tokens: Buffer, ends: Buffer, index_size: int) -> None:
        """Writes the next whole lines, and the number of examples up to and including each."""

    def next_text(self) -> None:
        """The next line is the first of another text."""

    def close(self, tokens: Buffer) -> None:
        """Writes the last boundary; IndexError where lines are missing."""

class Sampler:
    """Draws many texts from tables of next-token probabilities, one table per context of `context_length` tokens.

    `start`, then `advance` and `add` what it asks for while any are `unfinished`, then `texts` or `lines`. At most
    `max_contexts` tables are kept: when a text needs one more, all are dropped. For one thread at a time: RuntimeError
    in another.

    Rules that an automaton tells, and lengths, can go into the probabilities: `constrain`, `open` all contexts that
    texts start from, then `explore` and `add_explored` what it asks for until it asks for nothing, then `solve`. State
    0 of the automaton is that of texts which nothing can follow to make them wanted; texts start in another one.
    """

    def __init__(self, characters: str, context_length: int, max_contexts: int) -> None: ...
    def exclude(self, utf8: bytes) -> None:
        """No text is this one."""

    def exclude_lines(self, tokens: Buffer, token_size: int, boundary: int) -> None:
        """No text is what stands between two boundaries, or an end, of `tokens`; empty ones do not count."""

    def constrain(self, classes: Buffer, next: Buffer, accepting: Buffer, end: int) -> None:
        """Sets the automaton: the classes (V,) uint32 of tokens that it treats alike, the state (D, K) uint32 after one
        more token by state and class, and whether each state (D,) uint8 accepts a text. `end` is the token of the end.
        """

    def open(self, context: Buffer, state: int) -> None:
        """Texts may start from this context (context_length,) int32, in this state."""

    def explore(self) -> bytearray:
        """The contexts (M, T) int32 whose tables are missing; none where all are known, or there are too many."""

    def add_explored(self, weights: Buffer) -> None:
        """As `add`, for what `explore` asks for."""

    def solve(self, min_length: int, max_length: int) -> bool:
        """Computes the probabilities of texts of such lengths that are accepted; False where that takes too much.

        A `max_length` of -1 is none.
        """

    def acceptance(self, context: Buffer, state: int, length: int) -> float:
        """The probability that a text of `length` tokens, from there, goes on to one that is wanted; after `solve`."""

    def start(
        self,
        context: Buffer,
        seed: int,
        first: int,
        count: int,
        max_tokens: int,
        end: int,
        *,
        prefix: str = "",
        min_tokens: int = 0,
        must_end: bool = False,
        unique: bool = False,
        chained: bool = False,
        state: int = 1,
        length: int = 0,
        attempts: int = 1,
    ) -> None:
        """Begins the texts number first .. first + count - 1, which continue `context` (context_length,) int32 up to
        the token `end`, -1 for none, or to `max_tokens` tokens. A text depends on its number and 0 <= seed < 2^64.

        Each is `prefix`, of `length` tokens, and what is drawn. With `must_end` one of more tokens, of fewer than
        `min_tokens`, or that the automaton does not accept from `state`, is drawn again; so is one that is excluded,
        and if they are to be `unique` one that equals another of a lower number or an earlier start. `attempts` times
        at most.
        `chained` draws from what `solve` computed.
        """

    def advance(self) -> bytearray:
        """Continues the texts, by 2^24 tokens in all at most; the contexts (M, T) int32 whose tables are missing."""

    def add(self, weights: Buffer) -> None:
        """Tables for the first K of the missing contexts: (K, V) float64, each row proportional to probabilities."""

    @property
    def unfinished(self) -> int:
        """The number of texts that have not ended."""

    @property
    def size(self) -> int:
        """The number of texts: less than `count` where the next one took all its attempts."""

    @property
    def draws(self) -> int:
        """How often a text was drawn since `start`, to its end or until it broke a rule."""

    def texts(self) -> list[str]:
        """The prefix and what was drawn after it, without the context."""

    def lines(self) -> bytes:
        """The same in UTF-8, with a line break after each."""

def frame_lines(
    token_size: int,
    index_size: int,
    tokens: Buffer,
    ends: Buffer,
    order: Buffer,
    context_length: int,
    boundary: int,
    framed: Buffer,
    framed_ends: Buffer,
) -> None:
    """Writes the lines order[0], order[1], ..., each as `context_length` boundaries and its tokens, then one boundary;
    and the number of examples up to and including each line. Line i of `tokens` runs from ends[i - 1] to ends[i].
    """

def distinct_contexts(
    token_size: int,
    index_size: int,
    tokens: Buffer,
    ends: Buffer,
    context_length: int,
    vocab_size: int,
    step: int = 1,
    with_index: bool = True,
) -> tuple[bytearray, bytearray, bytearray, bytearray, bytearray]:
    """Where each of U distinct contexts first starts (U,) int64, the context of each example (N,), and the counts of
    their targets in CSR form: row_ptr (U+1,) int64, targets (nnz,) as tokens, counts (nnz,) int64.

    `ends` is the number of examples up to and including each line; the tokens are those of a vocabulary of
    `vocab_size`. Of the N examples only 0, step, 2 step, ... are looked at. Without the
    index, which then is empty, it takes memory for the distinct contexts alone.
    """
