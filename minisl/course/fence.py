"""What an answer may do while it is graded: compute, and write into its own folder.

Three layers. Limits (memory, seconds, size of a file) by the kernel, on Linux and macOS. Landlock, on Linux since 5.13: no file
outside some folders can be written, deleted or read, no program started, nothing reached by TCP, nobody else signalled; whatever
code tries it. An audit hook, everywhere: the same rules for Python's own functions, with a message that says so.
"""

import contextlib
import ctypes
import os
import resource
import struct
import sys
import sysconfig

GIB = 1 << 30
EXECUTE, WRITE, READ, READ_FOLDER, TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
EVENTS = {"os.remove", "os.rmdir", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
          "os.utime", "os.mkfifo", "os.mknod"}
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn",
            "os.kill", "os.killpg", "socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo",
            "socket.gethostbyname", "webbrowser.open"}
FILES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/etc/ld.so.cache", "/etc/localtime")


def limits(memory, seconds, file_bytes=64 << 20):
    """Bound this process: address space in bytes, seconds of CPU, the largest file it can write."""
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, int(seconds)), (resource.RLIMIT_FSIZE, file_bytes),
                       (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS has no bound on address space
            resource.setrlimit(what, (most, most))


def landlock(write, read, programs=False):
    """Shut this process in (Linux): it writes only below the folders `write`, and reads only below those and `read`.

    programs: it may start others, which are shut in too. Returns whether the kernel knows Landlock.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(444, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    every = (1 << 13) - 1 | (1 << 13 if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled = every & ~EXECUTE if programs else every
    network, scoped = (3 if version >= 4 else 0), (3 if version >= 6 else 0)
    asked = struct.pack("<QQQ", handled, network, scoped)[:8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(444, asked, ctypes.c_size_t(len(asked)), 0)
    if ruleset < 0:
        return False
    rules = [(path, READ_FOLDER) for path in sys.path if os.path.isdir(path)]  # where imports look
    rules += [(path, READ | READ_FOLDER) for path in read] + [(path, handled & ~EXECUTE) for path in write]
    rules += [(path, READ | WRITE * path.startswith("/dev/")) for path in FILES]
    for folder, rights in rules:
        with contextlib.suppress(OSError):
            at = os.open(folder, os.O_PATH)
            libc.syscall(445, ruleset, 1, struct.pack("<Qi", rights, at), 0)
            os.close(at)
    done = libc.prctl(38, 1, 0, 0, 0) == 0 and libc.syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return done


def readable():
    """The folders that Python, its packages and minisl lie in."""
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    data = os.path.join(os.path.dirname(package), "data")
    paths = {sys.prefix, sys.base_prefix, *sysconfig.get_paths().values(), package, data,
             "/usr", "/lib", "/lib64", "/bin", "/proc", "/sys"}
    return sorted(path for path in paths if path != "/" and os.path.isdir(path))


def audit(folder):
    """Refuse, for the rest of this process, what Python code would do to files outside `folder`, programs and the network."""
    own = os.path.realpath(folder)

    def inside(path):
        if isinstance(path, int):
            return True
        path = os.path.realpath(os.fsdecode(path))
        return path == own or path.startswith(own + os.sep) or path.startswith("/dev/")

    def hook(event, args):
        if event in PROGRAMS:
            raise PermissionError(f"while graded, an answer may not use {event}")
        if event == "open" and isinstance(args[0], (str, bytes)):
            mode, flags = args[1], args[2] or 0
            change = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
            writes = set(mode) & set("wax+") if isinstance(mode, str) else flags & change
            if writes and not inside(args[0]):
                raise PermissionError(f"while graded, an answer may write only into its own folder, not {os.fsdecode(args[0])}")
        if event in EVENTS and not all(inside(path) for path in args[:2] if isinstance(path, (str, bytes, os.PathLike))):
            raise PermissionError(f"while graded, an answer may not change files outside its own folder ({event}, {args[0]})")

    sys.addaudithook(hook)
