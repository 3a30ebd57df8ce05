"""A small Debian 12 with systemd in namespaces, booted as a container manager boots it.

It replaces a server: kernel and clock are those of the test machine, its only network is loopback, and where the test machine has its
controllers in version 1 of the control groups, limits of memory and tasks are accepted and not enforced."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from network_namespace import run_command, set_network_namespace

# deadline of the boot
BOOT_SECONDS = 60

# $1: the Debian tree, which stays unchanged; $2: an empty folder
INIT = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" "$2/root"
cd "$2/root"
mount -t proc proc proc
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "dev/${node%:*}" c 1 "${node#*:}"; done
mkdir dev/pts dev/shm host
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
touch dev/console
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -sf /dev/null etc/systemd/system/console-getty.service
pivot_root . host
umount -l host
# credentials are mounted by a helper in another mount namespace, and have to propagate
mount --make-rshared /
exec env -i container=lts PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=multi-user.target
"""


class Machine:
    """Booted when the constructor returns. `close` kills every process in it and removes its files."""

    def __init__(self, tree):
        self.tree = pathlib.Path(tree)
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="lts-machine-"))
        self._groups = self._folder / "groups"
        self._groups.mkdir()
        (self._folder / "mount").mkdir()
        # the hierarchy of version 2, which may be mounted elsewhere too; the machine sees its own group as the root
        run_command("mount", "-t", "cgroup2", "cgroup2", self._groups)
        self._group = self._groups / self._folder.name
        self._group.mkdir()
        spaces = "--cgroup --mount --pid --uts --ipc --net"
        init = f'echo $$ >"{self._group}/cgroup.procs"; exec unshare {spaces} --fork sh -c "$0" sh "$1" "$2"'
        self._console = open(self._folder / "console", "w")
        self._process = subprocess.Popen(
            ["sh", "-c", init, INIT, self.tree, self._folder / "mount"],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=self._console,
        )
        deadline = time.monotonic() + BOOT_SECONDS
        while self.run("systemctl", "is-system-running", check=False).strip() not in ("running", "degraded"):
            assert self._process.poll() is None and time.monotonic() < deadline, f"the machine does not boot:\n{self.console}"
            time.sleep(0.1)

    @property
    def console(self):
        return (self._folder / "console").read_text(errors="replace")

    @property
    def init(self):
        """The process id, on the test machine, of the machine's process 1."""
        children = pathlib.Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0]) if children else self._process.pid

    @property
    def root(self):
        """The machine's root folder, as a path on the test machine."""
        return pathlib.Path(f"/proc/{self.init}/root")

    def command(self, *command):
        """The command line that runs `command` in the machine."""
        return ["nsenter", f"--target={self.init}", "--all", "--root", "--wd=/", "--", *map(str, command)]

    def run(self, *command, check=True):
        """Runs a command in the machine and returns its output."""
        done = subprocess.run(self.command(*command), capture_output=True, text=True, stdin=subprocess.DEVNULL)
        output = done.stdout + done.stderr
        assert done.returncode == 0 or not check, f"{' '.join(map(str, command))}: {output}\n{self.journal('--lines=40')}"
        return output

    def journal(self, *arguments):
        return self.run("journalctl", "--no-pager", "--output=cat", *arguments, check=False)

    def show(self, unit, name):
        """The value of a unit's property."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    @contextlib.contextmanager
    def inside(self):
        """Within this context, new sockets of the thread belong to the machine's network."""
        outer, inner = (os.open(path, os.O_RDONLY) for path in ("/proc/self/ns/net", f"/proc/{self.init}/ns/net"))
        set_network_namespace(inner)
        try:
            yield
        finally:
            set_network_namespace(outer)
            os.close(outer)
            os.close(inner)

    def close(self):
        (self._group / "cgroup.kill").write_text("1")
        self._process.wait(30)
        self._console.close()
        deadline = time.monotonic() + 30
        while (self._group / "cgroup.events").exists() and "populated 1" in (self._group / "cgroup.events").read_text():
            assert time.monotonic() < deadline, "the machine's processes do not end"
            time.sleep(0.05)
        for folder, _, _ in os.walk(self._group, topdown=False):
            os.rmdir(folder)
        run_command("umount", self._groups)
        shutil.rmtree(self._folder)
