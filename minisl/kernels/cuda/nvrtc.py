"""Compile a CUDA text for a GPU that need not be here, and read what its kernels will need of one: NVRTC through ctypes, from the
wheel nvidia-cuda-nvrtc. No CuPy, no driver.

    python -m minisl.kernels.cuda.nvrtc      # registers and shared memory of all rungs
"""

import ctypes
import re
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

from minisl.command import Parser, run_command
from minisl.errors import InputError
from minisl.kernels.cuda import ladder

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")  # Turing, Ampere, Hopper, Blackwell
KERNEL = re.compile(r"entry function '(?P<kernel>\w+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
                    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<more>[^\n]*)", re.S)


@dataclass(frozen=True)
class Resources:
    """What a kernel needs: registers and stack of each thread, static shared memory of each block, bytes that go to memory and
    back because the registers do not suffice."""

    kernel: str
    registers: int
    shared_bytes: int
    spill_bytes: int
    stack_bytes: int


class CompileError(RuntimeError):
    """The compiler's complaint: an error, or a warning."""


def compile(source, arch, name="kernel.cu"):
    """[Resources] of a text's kernels on `arch`, by name. Raises CompileError, InputError where there is no NVRTC."""
    log = compiler_log(source, arch, name)
    if complaint := [line for line in log.splitlines() if line.strip() and not re.match(r"ptxas (info|\s+\.)", line)]:
        raise CompileError("\n".join(complaint))
    found = []
    for kernel in KERNEL.finditer(log):
        shared = re.search(r"(\d+) bytes smem", kernel["more"])
        found.append(Resources(kernel["kernel"], int(kernel["registers"]), int(shared[1]) if shared else 0,
                               int(kernel["stores"]) + int(kernel["loads"]), int(kernel["stack"])))
    return sorted(found, key=lambda resources: resources.kernel)


def compiler_log(source, arch, name):
    """What the compiler says. Raises CompileError with it if there is an error."""
    nvrtc = library()
    if nvrtc is None:
        raise InputError("NVRTC is not installed; fix: pip install nvidia-cuda-nvrtc")

    def call(function, *arguments):
        if error := getattr(nvrtc, function)(*arguments):
            raise CompileError(nvrtc.nvrtcGetErrorString(error).decode())

    program = ctypes.c_void_p()
    options = ("-std=c++17", f"-arch={arch}", "-ftz=true", "--ptxas-options=-v")  # as CuPy: numbers below 1e-38 become 0
    call("nvrtcCreateProgram", ctypes.byref(program), source.encode(), name.encode(), 0, None, None)
    try:
        error = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options)))
        size = ctypes.c_size_t()
        call("nvrtcGetProgramLogSize", program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        call("nvrtcGetProgramLog", program, log)
        if error:
            raise CompileError(log.value.decode(errors="replace").strip() or nvrtc.nvrtcGetErrorString(error).decode())
        return log.value.decode(errors="replace")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def library():
    """NVRTC from its wheel (which CuPy uses too), else the system's; None where there is none."""
    for path in candidates():
        try:
            nvrtc = ctypes.CDLL(str(path))
        except OSError:
            continue
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        return nvrtc
    return None


def candidates():
    """Where a libnvrtc may be; the wheel's folder is cu13/lib since CUDA 13, cuda_nvrtc/lib before."""
    spec = find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or () if spec else ())]
    folders = [*(root / wheel for root in roots for wheel in ("cu13", "cuda_nvrtc")), *sorted(Path("/usr/local").glob("cuda*"))]
    patterns = ("lib/libnvrtc.so.*", "lib64/libnvrtc.so.*", "bin/**/nvrtc64_*.dll")
    found = chain.from_iterable(sorted(folder.glob(pattern), reverse=True) for folder in folders for pattern in patterns)
    system = find_library("nvrtc")
    return [*(path for path in found if "alt" not in path.name), *([system] if system else [])]


def main(argv):
    parser = Parser(prog="python -m minisl.kernels.cuda.nvrtc", description="What each rung needs of a GPU.")
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES), metavar="sm_N", help="for which GPUs")
    args = parser.parse_args(argv)
    lines = [f"| kernel | rung | {' | '.join(args.arch)} | shared |", "|---|---|---|" + "---|" * len(args.arch)]
    for op, rungs in ladder.rungs().items():
        for rung in range(rungs):
            try:
                compiled = [compile(ladder.source(op, rung), arch, f"{op}_{rung}.cu") for arch in args.arch]
            except CompileError as error:
                raise InputError(f"{op}_{rung}.cu for {', '.join(args.arch)}: {error}") from None
            for kernels in zip(*compiled):
                registers = "".join(f" {k.registers}{f' ({k.spill_bytes})' if k.spill_bytes else ''} |" for k in kernels)
                lines.append(f"| {kernels[0].kernel} | {rung} |{registers} {max(k.shared_bytes for k in kernels)} |")
    print("registers of a thread (bytes spilled), and bytes of shared memory of a block\n", *lines, sep="\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
