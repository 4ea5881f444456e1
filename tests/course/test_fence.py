"""What the kernel refuses to an answer, whatever code asks for it."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

fence = pytest.importorskip("minisl.course.fence", reason="needs Linux or macOS")
pytestmark = pytest.mark.skipif("seccomp filter" in fence.lacking(), reason="needs a seccomp filter (Linux on x86_64 or aarch64)")


def behind(program):
    """What a program prints that has shut itself in: its lines."""
    start = "import ctypes, os, resource, socket, threading\nfrom minisl.course import fence\nassert fence.seccomp()\n"
    start += "libc = ctypes.CDLL(None, use_errno=True)\n"
    done = subprocess.run([sys.executable, "-c", start + textwrap.dedent(program)], capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout.split(), done.stderr


@pytest.mark.parametrize("call", [
    "libc.chmod(b'.', 0o700)", "libc.fchmod(0, 0o700)", "libc.fchmodat(-100, b'.', 0o700, 0)", "libc.chown(b'.', 0, 0)",
    "libc.utimes(b'.', None)", "libc.setxattr(b'.', b'user.x', b'x', 1, 0)", "libc.socket(1, 1, 0)", "libc.socket(2, 2, 0)",
    "libc.syscall(425, 1, None)", "libc.memfd_create(b'x', 0)", "libc.shmget(0, 4096, 0o1600)", "libc.fork()", "libc.vfork()",
    "libc.ptrace(16, os.getppid(), 0, 0)", "libc.kill(os.getppid(), 0)", "libc.kill(-1, 0)", "libc.syscall(434, os.getppid(), 0)",
    "libc.prlimit(os.getppid(), 0, None, None)", "libc.unshare(1 << 28)"])
def test_refused(call):
    assert behind(f"print({call}, ctypes.get_errno())") == (0, ["-1", "1"], "")  # EPERM


def test_allowed(tmp_path):
    program = f"""
        import numba, numpy as np
        os.kill(os.getpid(), 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        threading.Thread(target=lambda: print("thread")).start()
        open({str(tmp_path / "file")!r}, "w").write("x")
        @numba.njit(parallel=True)
        def double(x):
            for i in numba.prange(len(x)):
                x[i] *= 2
        x = np.ones(1000)
        double(x)
        a = np.ones((300, 300))
        print(int(x.sum()), int((a @ a)[0, 0]))
        """
    assert behind(program) == (0, ["thread", "2000", "300"], "")


def test_no_program_starts():
    assert "PermissionError" in behind("os.posix_spawn('/bin/true', ['true'], {})")[2]


def test_it_can_abort():
    assert behind("os.abort()")[0] == -6


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("machine", HEADERS)
def test_the_numbers_are_the_kernels(machine):
    path = Path(HEADERS[machine])
    if not path.exists():
        pytest.skip("needs the kernel's headers")
    known = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", path.read_text())}
    column = list(fence.MACHINES).index(machine)
    ours = {name: numbers[column] for name, numbers in (fence.REFUSED | fence.ITSELF).items()}
    ours |= {"clone": fence.CLONE[column], "clone3": fence.CLONE3}
    assert len(known.keys() & ours.keys()) > 25
    newer = {"fchmodat2", "setxattrat", "removexattrat"}  # than some headers
    assert {name: known.get(name) for name in ours if name not in newer - known.keys()} == {
        name: number for name, number in ours.items() if name not in newer - known.keys()}
