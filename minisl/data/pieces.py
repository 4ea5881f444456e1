"""Documents of any length, a piece at a time: what is not in memory as a whole cannot fill it."""

import re

PIECE = 1 << 16  # characters of a piece
CONTEXT = 64  # characters on each side of a place that tell whether a text can be cut there
BORDER = re.compile(r"(?<=\S)[ \n]")  # where most tokenizers cut, whatever stands before and after


class LongText:
    """Characters start ... stop of a UTF-8 file that is too large to hold: read again, block by block, each time."""

    def __init__(self, path, start=0, stop=None):
        self.path, self.start = path, start
        self.stop = sum(map(len, read_blocks(path))) if stop is None else stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, part):
        """The characters of a slice, as a LongText."""
        start, stop, _ = part.indices(len(self))
        return LongText(self.path, self.start + start, self.start + max(start, stop))

    def blocks(self):
        at = 0
        for block in read_blocks(self.path):
            if at >= self.stop:
                return
            yield block[max(0, self.start - at) : self.stop - at]
            at += len(block)


def read_blocks(path):
    """The text of a UTF-8 file in strings of some size, without a byte order mark, lines ending in \\n. Raises OSError,
    UnicodeDecodeError, whose `start` is the byte in the file."""
    with open(path, encoding="utf-8-sig") as file:
        try:
            while block := file.read(PIECE):
                yield block
        except UnicodeDecodeError as error:
            error.start += file.buffer.tell() - len(error.object)
            raise


def blocks(document):
    """The text of a document, str or LongText, in strings of some size."""
    if isinstance(document, LongText):
        return document.blocks()
    return [document] if len(document) <= PIECE else (document[i : i + PIECE] for i in range(0, len(document), PIECE))


def whole(document):
    """The text of a document."""
    return "".join(blocks(document))


def n_bytes(documents):
    """Their length in UTF-8."""
    return sum(len(block.encode()) for document in documents for block in blocks(document))


def pieces(document, apart=None):
    """Yields (the characters before a piece, a piece) of a document, at least one; together they are the document.

    apart(text, at): whether a tokenizer has the same ids for a text that is cut there; left out: between words. Where no such
    place is near, as in a word of a million characters, the piece before is empty and the cut is anywhere.
    """
    before, rest = "", ""
    for block in blocks(document):
        rest += block
        while len(rest) > PIECE + CONTEXT:
            at = place(rest, apart)
            yield before, rest[:at]
            before = rest[max(0, at - CONTEXT) : at] if apart and apart(rest, at) else ""
            rest = rest[at:]
    yield before, rest


def place(text, apart):
    """Where to cut a text, at PIECE or a little before."""
    spaces = [found.start() for found in BORDER.finditer(text, PIECE - PIECE // 16, PIECE)]
    if apart is None:
        return spaces[-1] if spaces else PIECE
    return next((at for at in (*spaces[:-9:-1], *range(PIECE, PIECE - CONTEXT, -1)) if apart(text, at)), PIECE)
