"""From CUDA text to a library of this machine: g++, and what its neighbours nm and addr2line know of the result."""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from minisl.errors import InputError
from minisl.files import cache_folder

HEADER, MACHINE = (Path(__file__).parent / name for name in ("cuda_on_cpu.h", "machine.h"))
FLAGS = ["-std=c++20", "-O1", "-g", "-fPIC", "-fno-strict-aliasing", "-fno-threadsafe-statics", "-U_FORTIFY_SOURCE",
         "-Wno-unknown-pragmas", "-fsanitize=thread", "-fsanitize=undefined,float-cast-overflow", "-fno-sanitize=vptr",
         "-Werror=frame-larger-than=65536"]  # half a thread's stack
DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+([\w\s]+?)\s+(\w+)\s*\[\s*\]\s*;")


class CompileError(RuntimeError):
    """A CUDA text that is no C++."""


@cache
def compiler():
    """The path of g++, or of what CXX names. Raises InputError where there is none, or not on Linux."""
    name = os.environ.get("CXX") or "g++"
    if platform.system() != "Linux":
        raise InputError("the CUDA emulator runs on Linux (on Windows: inside WSL)")
    missing = [tool for tool in (name, "nm", "addr2line") if shutil.which(tool) is None]
    if missing:
        said = " (named by CXX)" if os.environ.get("CXX") else ""
        raise InputError(f"the CUDA emulator needs {' and '.join(missing)}{said}, not found here; fix: apt install g++, "
                         "or your system's package of it")
    return shutil.which(name)


def build(code, defines, name, kernels):
    """The path of the compiled library, kept for the next time where that is possible. Raises CompileError, InputError."""
    text = DYNAMIC_SHARED.sub(r"\1* \2 = (\1*)cu::dynamic_shared;", code)
    text = "\n".join([f'#line 1 "{name}"', text, *(f"CU_KERNEL({kernel})" for kernel in kernels), ""])
    command = [compiler(), *FLAGS, *defines]
    key = hashlib.sha256(repr((command, text, HEADER.read_text(), MACHINE.read_text())).encode()).hexdigest()[:20]
    library = cache_folder() / "emulator" / f"{key}.so"
    if os.access(library, os.R_OK):
        return library
    folder = writable(library.parent)
    library = folder / library.name
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        linked = link(command, text, f"{scratch}/kernel")
        if initialiser(linked):
            plain = link([*command, "-O0"], text, f"{scratch}/plain")  # each statement keeps its line
            line = min(filter(None, lines(plain, initialiser(plain))), default=1)
            raise CompileError(f"{name}:{line}: error: this variable's first value must be computed, and on a GPU nothing runs "
                               "before the kernel; give it a constant, or compute it in the kernel")
        os.replace(linked, library)
    return library


def link(command, text, path):
    """Compile a text; the path of the library that it becomes. Raises CompileError."""
    done = subprocess.run([*command, "-include", str(HEADER), "-x", "c++", "-c", "-", "-o", f"{path}.o"], input=text, text=True,
                          capture_output=True)
    if done.returncode:
        raise CompileError(next((line for line in done.stderr.splitlines() if "error:" in line), done.stderr))
    # linked without -fsanitize: the calls it put in are answered by the header, not by its libraries
    # -Bsymbolic: a kernel named as a function of the C library is still the one that runs
    subprocess.run([command[0], "-shared", "-Wl,-Bsymbolic", f"{path}.o", "-o", f"{path}.so"], check=True, capture_output=True)
    return f"{path}.so"


def initialiser(path):
    """The addresses of the code that g++ has run when the library is loaded: where no kernel runs yet, nothing is watched."""
    return tuple(at for begin, size, name in symbols(path)
                 if name.startswith(("_GLOBAL__sub_I_", "__static_initialization"))
                 for at in range(begin, begin + size))


def writable(folder):
    """The folder, or where it cannot be written one that goes when this process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        return folder
    except OSError:
        return Path(not_kept().name)


@cache
def not_kept():
    """A folder for what this process alone compiles."""
    return tempfile.TemporaryDirectory(prefix="minisl-")


@cache
def symbols(path):
    """[(address, bytes, name)] of what the library defines."""
    listing = output("nm", "-C", "-S", "--defined-only", path)
    found = re.findall(r"^([0-9a-f]+) ([0-9a-f]+) \w (.+)$", listing, re.M)
    return [(int(address, 16), int(size, 16), name) for address, size, name in found]


@cache
def lines(path, addresses):
    """The line of the kernel's text behind each code address of the library, 0 where it is not known."""
    found = output("addr2line", "-e", path, *map(hex, addresses)) if addresses else ""
    return [int(number[1]) if (number := re.search(r":(\d+)", line)) else 0 for line in found.splitlines()]


def output(*command):
    return subprocess.run(command, text=True, capture_output=True, check=True).stdout
