"""What all commands share: one-line errors, and exit codes that mean something."""

import argparse
import io
import os
import sys

from minisl.errors import InputError, TrainingError


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says a default where there is one."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are InputErrors; flags cannot be abbreviated."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, formatter_class=Help, **kwargs)

    def error(self, message):
        raise InputError(f"{message} (--help lists all flags)")


def run_command(command, argv=None):
    """Exit code of `command(argv)`: what it returns, or after one line on stderr 2 for bad input, 1 for training that cannot
    go on or a machine that cannot (disk full, too little memory), 130 for Ctrl-C."""
    open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without a character for it shows its code
    try:
        code = command(sys.argv[1:] if argv is None else argv) or 0
        print(end="", flush=True)
        return code
    except InputError as error:
        return complain(error, 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (TrainingError, OSError, MemoryError) as error:
        return complain(error, 1)


def open_streams():
    """What of stdin, stdout and stderr is closed (`2>&-`, a Windows program without a console) is opened to nowhere: a message
    must not end a run, nor a run's file get the number 2, where libraries write what they have to say."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))


def complain(error, code):
    """Print the error as one line on stderr; returns the exit code."""
    line = " ".join(str(error).split()) or type(error).__name__
    if len(line) > 1200:  # it quotes what was given, and that can be a whole file
        line = f"{line[:700]} [...] {line[-300:]}"
    print("error:", line, file=sys.stderr)
    return code
