"""The oldest versions that pyproject.toml allows, as constraints for pip; the tests are to pass with them too.

    python tests/oldest.py > oldest.txt
    python -m pip install -e '.[test]' -c oldest.txt

`numpy>=2.0` becomes `numpy==2.0`. Where a package has wheels for this Python only in later versions, the first of these, below,
is meant.
"""

import re
import sys
import tomllib
from pathlib import Path

FIRST = {  # Python: the first version with a wheel for it, where that is later
    (3, 13): {"numpy": "2.1.0", "scipy": "1.14.1", "matplotlib": "3.9.2", "tokenizers": "0.20.2"},
}


def oldest(python=sys.version_info[:2]):
    """{package: version} of the dependencies, without extras."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]
    bounds = dict(re.fullmatch(r"([\w-]+)>=([\w.]+)", line).groups() for line in project["dependencies"])
    return bounds | FIRST.get(python, {})


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in oldest().items()))
