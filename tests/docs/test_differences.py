"""docs/differences.md is the whole list: each method is in it, and each flag of the public script that is refused."""

import re
from pathlib import Path

from minisl.config import NOT_HERE
from minisl.methods import available

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text("utf-8")


def test_each_method_has_a_row_or_none_is_known():
    """Rejects: a method without a word, one with a row that is also said to have none, and rows of what is no method."""
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Method by method")[2], re.M)
    none = re.findall(r"`(\w+)`", re.search(r"^None is known for (.*?)\.$", PAGE, re.M)[1])
    assert rows == sorted(set(rows))
    assert sorted(rows + none) == available()


def test_refused_flags_are_those_of_the_page():
    refused = [words.split() for words in re.findall(r"`--([^`]*)`", re.search(r"^- Refused: (.*?)\.$", PAGE, re.M | re.S)[1])]
    alone = {name for name, why in NOT_HERE.items() if isinstance(why, str)}
    assert {f"--{name}" for name, *value in refused if not value} == alone
    for name, value in (words for words in refused if len(words) == 2):
        assert value in NOT_HERE[f"--{name.replace('scheduler', 'schedule')}"]
