"""What an answer may do while it is graded: compute, and write into its own folder.

Four layers. Limits (memory, seconds, size of a file) by the kernel, on Linux and macOS. Landlock, on Linux since 5.13: no file
outside some folders is written, deleted or read, no program started; whatever code tries it. A seccomp filter, on Linux: no other
process is started or signalled, no socket opened, no file's mode or owner changed. An audit hook, everywhere: the same rules for
Python's own functions, with a message that says so.
"""

import contextlib
import ctypes
import errno
import os
import platform
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
# System calls that are refused, by their numbers on x86_64 and aarch64.
REFUSED = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "socket": (41, 198), "io_uring_setup": (425, 425),  # the latter's rings do what they like past this filter
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180), "memfd_create": (319, 279),
    "fork": (57, None), "vfork": (58, None), "unshare": (272, 97), "setns": (308, 268),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
}
ITSELF = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}  # allowed if the first argument is this process
CLONE, CLONE3, CLONE_THREAD = (56, 220), 435, 1 << 16  # a thread is allowed, a process is not
MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
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
    libc, version = ctypes.CDLL(None), landlock_version()
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


def landlock_version():
    """What this kernel knows of Landlock: 1 since 5.13; 0 or below for nothing."""
    return ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else 0


def seccomp():
    """Refuse this process the system calls above (Linux on x86_64 and aarch64). Returns whether that is done.

    The filter is a program for the kernel's small machine (BPF): instructions (operation, steps to jump if true and if false,
    constant) on the call's number at byte 0, its kind of processor at byte 4, its first argument at byte 16.
    """
    if not seccomp_known():
        return False
    column = list(MACHINES).index(platform.machine())
    load, equal, at_least, has, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, unknown = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    program = [(load, 0, 0, 4), (equal, 1, 0, MACHINES[platform.machine()]), (answer, 0, 0, refuse),
               (load, 0, 0, 0), (at_least, 0, 1, 1 << 30), (answer, 0, 0, refuse)]  # numbers of x86's other kind
    for numbers in REFUSED.values():
        if numbers[column] is not None:
            program += [(equal, 0, 1, numbers[column]), (answer, 0, 0, refuse)]
    for numbers in ITSELF.values():
        program += [(equal, 0, 5, numbers[column]), (load, 0, 0, 16), (equal, 2, 0, os.getpid()), (equal, 1, 0, 0),
                    (answer, 0, 0, refuse), (answer, 0, 0, allow)]
    program += [(equal, 0, 4, CLONE[column]), (load, 0, 0, 16), (has, 1, 0, CLONE_THREAD),
                (answer, 0, 0, refuse), (answer, 0, 0, allow)]
    program += [(equal, 0, 1, CLONE3), (answer, 0, 0, unknown), (answer, 0, 0, allow)]  # libc then uses clone
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    described = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None)
    return libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, described, 0, 0) == 0


def seccomp_known():
    """Does this kernel take the filter, on this processor?"""
    return sys.platform == "linux" and platform.machine() in MACHINES and ctypes.CDLL(None).prctl(21, 0, 0, 0, 0) >= 0


def lacking():
    """Which layers this system does not have, as their names."""
    return ["Landlock"] * (landlock_version() < 1) + ["seccomp filter"] * (not seccomp_known())


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
