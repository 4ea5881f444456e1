"""Tables of Markdown, said row by row."""


class Table:
    def __init__(self, say, title, *columns):
        self.say = say
        say()
        say(f"**{title}**")
        say()
        self.row(*columns)
        say("|" + "---|" * len(columns))

    def row(self, *cells):
        self.say(f"| {' | '.join(str(c) for c in cells)} |")


def number(x):
    """Three digits, or all of those before the point."""
    return f"{x:,.0f}" if x >= 100 else f"{x:.{2 if x >= 1 else 3}f}" if x < 10 else f"{x:.1f}"


def ms(found):
    """Milliseconds of a Found, with ~ where they are multiplied; or why there are none, or nothing for None."""
    if found is None or found.timing is None:
        return why(found) if found else ""
    return ("~" if found.scaled else "") + number(1e3 * found.seconds)


def why(found):
    """A few words for why there is no time; bench.json has more."""
    return found.failed.partition(":")[0]


def ratio(mine, theirs):
    """How mine compares with theirs, where both were measured."""
    return f"{mine.seconds / theirs.seconds:.2f}" if mine and theirs and mine.timing and theirs.timing else ""
