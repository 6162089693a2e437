"""The read-only root a sandboxed command sees: the machine's own programs, and none of its people's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from shared.errors import SandboxError

PROGRAMS = "/opt/orchestrator/bin"
CA_BUNDLE = "/etc/orchestrator/ca.crt"
HOME = "/tmp/home"  # noqa: S108 — inside the sandbox /tmp is private
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

SHM_BYTES = 1_073_741_824

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")

# Named one by one: whole folders such as /etc/ssl hold private keys, which a worker running as root could show.
_ETC = (
    "alternatives", "ca-certificates", "ca-certificates.conf", "crypto-policies", "fonts", "gradle", "java-*", "java",
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "maven", "mime.types", "os-release", "pki/ca-trust",
    "pki/java", "pki/tls/cert.pem", "pki/tls/certs", "pki/tls/openssl.cnf", "protocols", "services", "ssl/certs",
    "ssl/cert.pem", "ssl/ca-bundle.pem", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
_GENERATED = {
    "/etc/passwd": "root:x:0:0:root:/:/bin/sh\nbuild:x:1000:1000:build:{home}:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/:/bin/false\n",
    "/etc/group": "root:x:0:\nbuild:x:1000:\nnogroup:x:65534:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nservices: files\n"
    "protocols: files\nnetworks: files\n",
    "/etc/hostname": "build\n",
}
_HOSTS = "127.0.0.1 localhost build\n::1 localhost ip6-localhost\n"

# What Docker masks too. /proc as a whole becomes read-only: the kernel lets a process of real user 0 write sysctls such
# as core_pattern without any capability, and bubblewrap 0.11 leaves /proc/sys writable when the worker runs as root.
_PROC_FILES = ("kcore", "keys", "key-users", "kmsg", "latency_stats", "sched_debug", "timer_list", "timer_stats")
_PROC_FOLDERS = ("acpi", "asound", "fs", "scsi")

_CA_CANDIDATES = (
    "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)  # fmt: skip


class Root:
    """bubblewrap options for everything but the project, worked out once for all commands."""

    def __init__(
        self, *, toolchain_roots: Sequence[Path], programs: Mapping[str, Path], hidden: Sequence[Path]
    ) -> None:
        self.has_programs = bool(programs)
        self.ca_bundle = _find_ca_bundle()
        # Mount points that have to exist in a /tmp that outlives a command.
        self.inside_tmp = [
            str(place.relative_to("/tmp"))  # noqa: S108
            for root in toolchain_roots
            for place in {_absolute(root), root.resolve()}
            if place.is_relative_to("/tmp") and root.is_dir()  # noqa: S108
        ]
        self._before = [*_system(), *_etc(), *_kernel_views(), *_toolchains_and_masks(toolchain_roots, hidden)]
        for name, path in programs.items():
            self._before += ["--ro-bind", str(path.resolve()), f"{PROGRAMS}/{name}"]
        self._before += [
            "--dir", "/run", "--dir", "/var", "--symlink", "/tmp", "/var/tmp", "--symlink", "/run", "/var/run",  # noqa: S108
        ]  # fmt: skip

    def options(self, network: bool, data: Callable[[bytes], str]) -> list[str]:
        """The options, in order; `data` turns content into the number of a descriptor to read it from."""
        options = list(self._before)
        for target, content in _GENERATED.items():
            options += ["--file", data(content.format(home=HOME).encode()), target]
        if not network:
            return [*options, "--file", data(_HOSTS.encode()), "/etc/hosts"]
        for name in ("/etc/hosts", "/etc/resolv.conf"):
            options += ["--ro-bind-try", name, name]
        if self.ca_bundle is not None:
            options += ["--ro-bind", str(self.ca_bundle), CA_BUNDLE]
        return options


def _find_ca_bundle() -> Path | None:
    """The worker's own certificates if it was given some (a company's proxy), else the system's."""
    for candidate in (os.environ.get("SSL_CERT_FILE", ""), *_CA_CANDIDATES):
        if candidate and Path(candidate).is_file() and os.access(candidate, os.R_OK):
            return Path(candidate).resolve()
    return None


def _system() -> Iterator[str]:
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), name)
        elif path.is_dir():
            yield from ("--ro-bind", name, name)


def _etc() -> Iterator[str]:
    yield from ("--dir", "/etc")
    etc = Path("/etc")
    for pattern in _ETC:
        for path in sorted(etc.glob(pattern)):
            # A link into /usr stays one: the name of the time zone is read from where /etc/localtime points.
            if path.is_symlink() and path.resolve().is_relative_to("/usr"):
                yield from ("--symlink", str(path.readlink()), str(path))
            elif path.exists():
                yield from ("--ro-bind-try", str(path.resolve()), str(path))


def _kernel_views() -> Iterator[str]:
    yield from ("--proc", "/proc")
    for name in _PROC_FILES:
        if Path("/proc", name).exists():
            yield from ("--ro-bind", "/dev/null", f"/proc/{name}")
    for name in _PROC_FOLDERS:
        if Path("/proc", name).is_dir():
            yield from ("--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}")
    yield from ("--remount-ro", "/proc", "--dev", "/dev")
    yield from ("--perms", "1777", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm")  # noqa: S108


def _toolchains_and_masks(roots: Sequence[Path], hidden: Sequence[Path]) -> list[str]:
    """Parents before what lies in them, so that the innermost word about a path is the one that counts.

    Raises SandboxError where one path would have to be seen and hidden.
    """
    system = {Path(name): Path(name) for name in _SYSTEM if Path(name).is_dir() and not Path(name).is_symlink()}
    # A toolchain is bound where it really is and where it is said to be: its scripts may name either.
    binds = {place: root.resolve() for root in roots if root.is_dir() for place in (_absolute(root), root.resolve())}
    masks: set[Path] = set()
    for secret in {path.resolve() for path in hidden}:
        if secret in binds.values():
            raise SandboxError(
                f"{secret} is both a toolchain and a folder that builds must not see",
                hint="install the toolchain somewhere else, or name a folder inside it as the toolchain",
            )
        if any(place.is_relative_to(secret) for place in system):
            raise SandboxError(f"{secret} cannot be hidden from builds: it holds the system itself")
        for place, real in (*system.items(), *binds.items()):
            if secret.is_relative_to(real):
                masks.add(place / secret.relative_to(real))
    shown = {**system, **binds}
    options: list[str] = []
    closing: list[str] = []
    for path in sorted({*masks, *binds}, key=_depth):
        outer = max((place for place in {*shown, *masks} if place in path.parents), key=_depth, default=None)
        if path in binds:
            if outer is None or outer in masks:
                options += ["--ro-bind", str(binds[path]), str(path)]
        elif path.is_dir():
            options += ["--tmpfs", str(path)]
            closing += ["--remount-ro", str(path)]
        elif path.exists():
            options += ["--ro-bind", "/dev/null", str(path)]
    return options + closing


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100 — resolve() would follow the links that the name is made of


def _depth(path: Path) -> int:
    return len(path.parts)
