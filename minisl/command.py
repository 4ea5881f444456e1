"""What all commands share: one-line errors, and exit codes that mean something."""

import argparse
import os
import sys

from minisl.errors import InputError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are InputErrors; flags cannot be abbreviated."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def error(self, message):
        raise InputError(f"{message} (--help lists all flags)")


def run_command(command, argv=None):
    """Exit code of `command(argv)`: what it returns, 2 after one line on stderr for bad input, 130 after Ctrl-C."""
    try:
        return command(sys.argv[1:] if argv is None else argv) or 0
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
