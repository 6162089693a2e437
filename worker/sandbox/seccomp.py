"""System calls no build needs, and that would reach past its namespaces: a seccomp filter for them.

A list of what is refused, in the spirit of Docker's default profile (https://docs.docker.com/engine/security/seccomp/),
not a list of what is allowed: builds run compilers, debuggers and language runtimes of every kind.
"""

from __future__ import annotations

import errno
import platform
import socket
import struct
from functools import cache

# linux/audit.h, and the numbers of asm/unistd_64.h and asm-generic/unistd.h.
_ARCHITECTURES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (0xC000003E, {
        "add_key": 248, "request_key": 249, "keyctl": 250, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323,
        "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176,
        "open_by_handle_at": 304, "acct": 163, "quotactl": 179, "swapon": 167, "reboot": 169, "iopl": 172,
        "ioperm": 173,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "lookup_dcookie": 212,
        "nfsservctl": 180, "vhangup": 153, "syslog": 103, "settimeofday": 164, "adjtimex": 159,
    }),
    "aarch64": (0xC00000B7, {
        "add_key": 217, "request_key": 218, "keyctl": 219, "bpf": 280, "perf_event_open": 241, "userfaultfd": 282,
        "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273, "delete_module": 106,
        "open_by_handle_at": 265, "acct": 89, "quotactl": 60, "swapon": 224, "reboot": 142,
        "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "lookup_dcookie": 18,
        "nfsservctl": 42, "vhangup": 58, "syslog": 116, "settimeofday": 170, "adjtimex": 171,
    }),
}  # fmt: skip
_SOCKET = {"x86_64": 41, "aarch64": 198}
_IOCTL = {"x86_64": 16, "aarch64": 29}

# Local families: no network namespace holds AF_VSOCK (the hypervisor), and AF_ALG is a way into the kernel.
_REFUSED_FAMILIES = (socket.AF_VSOCK, socket.AF_ALG)
_REFUSED_IOCTLS = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: typing into a terminal from the inside

_X32 = 0x40000000  # system calls of the x32 ABI have numbers from here on, past every comparison below

_LOAD, _JEQ, _JGE, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _ARGUMENT_0, _ARGUMENT_1 = 0, 4, 16, 24  # offsets in struct seccomp_data (little-endian words)


def has_filter() -> bool:
    """Whether this machine's system calls are known here."""
    return platform.machine() in _ARCHITECTURES


@cache
def system_call_filter() -> bytes:
    """The filter as an array of struct sock_filter; one that allows all where the architecture is not known here."""
    machine = platform.machine()
    if not has_filter():
        return struct.pack("<HBBI", _RETURN, 0, 0, _ALLOW)
    audit, refused = _ARCHITECTURES[machine]
    deny = _ERRNO | errno.EPERM
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE), (_JEQ, 1, 0, audit), (_RETURN, 0, 0, deny),
        (_LOAD, 0, 0, _NUMBER),
    ]  # fmt: skip
    if machine == "x86_64":
        program += [(_JGE, 0, 1, _X32), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number in sorted(refused.values()):
        # io_uring's users fall back to other calls when told that it does not exist.
        answer = _ERRNO | (errno.ENOSYS if 425 <= number <= 427 else errno.EPERM)
        program += [(_JEQ, 0, 1, number), (_RETURN, 0, 0, answer)]
    for call, argument, values in (
        (_SOCKET[machine], _ARGUMENT_0, _REFUSED_FAMILIES),
        (_IOCTL[machine], _ARGUMENT_1, _REFUSED_IOCTLS),
    ):
        program += [(_JEQ, 0, 2 + 2 * len(values), call), (_LOAD, 0, 0, argument)]
        for value in values:
            program += [(_JEQ, 0, 1, int(value)), (_RETURN, 0, 0, deny)]
        program += [(_RETURN, 0, 0, _ALLOW)]
    program += [(_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
