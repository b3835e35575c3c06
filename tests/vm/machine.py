"""One VM: a booted systemd with its own disk, network, journal and cgroup, which can be rebooted, frozen, cut off and cloned.

It is a container that systemd-nspawn boots: its kernel is this machine's. All else is its own, and cloud-init sets it up
from a seed on its disk, as in a cloud.
"""

import contextlib
import ctypes
import os
import pathlib
import shutil
import signal
import subprocess
import time
import uuid

from lab import CONTROL_PLANE, PEERS, until

ROOT = PEERS / "vm-root"
#: nspawn's exit status when the machine wants to be started again.
REBOOT = 133
#: Beyond what nspawn gives: rules, raw sockets and locked memory, which a machine's root has.
RIGHTS = "CAP_NET_ADMIN,CAP_NET_RAW,CAP_IPC_LOCK"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CGROUPS = pathlib.Path("/sys/fs/cgroup")

# nspawn puts a file over the boot's number, which services with a /proc of their own do not see: here all see the same.
POWER_ON = """#!/bin/sh
while umount /proc/sys/kernel/random/boot_id 2>/dev/null; do :; done
exec /lib/systemd/systemd
"""


class Machine:
    def __init__(self, lab, name, ip, layer, size="1500m"):
        if len(name) > 10:
            raise ValueError(f"{name} is too long to name an interface")
        self.lab, self.name, self.ip, self.layer, self.size = lab, name, ip, layer, size
        self.directory = lab.directory / f"machine-{name}"
        self.disk, self.root = self.directory / "disk", self.directory / "root"
        self.process = None
        for directory in (self.disk, self.root):
            directory.mkdir(parents=True)
        # In memory: quick, allowed as an upper layer wherever the tests run, and of a size that can be changed.
        mount("-t", "tmpfs", "-o", f"size={size},mode=755", "none", self.disk)
        for directory in ("upper", "work"):
            (self.disk / directory).mkdir()
        mount("-t", "overlay", "none", "-o", f"lowerdir={layer}:{ROOT},upperdir={self.disk}/upper,workdir={self.disk}/work", self.root)
        self.put("/sbin/power-on", POWER_ON, mode=0o755)

    # --- the disk, while the machine is off ---

    def put(self, path, text, mode=0o644):
        """Writes a file onto the disk."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def seed(self, user_data, host_name=None):
        """What the cloud tells the machine at its first boot: of a new instance, each time."""
        nocloud = "/var/lib/cloud/seed/nocloud"
        self.put(f"{nocloud}/user-data", user_data, mode=0o600)
        self.put(f"{nocloud}/meta-data", f"instance-id: i-{uuid.uuid4().hex[:12]}\nlocal-hostname: {host_name or self.name}\n")
        self.put(f"{nocloud}/network-config", f"""version: 2
ethernets:
  eth0:
    match: {{name: eth0}}
    addresses: [{self.ip}/24]
    gateway4: {CONTROL_PLANE}
    nameservers: {{addresses: [{CONTROL_PLANE}]}}
""")

    def clone(self, name, ip):
        """Another machine with a copy of this one's disk. As in clouds, only the machine's ID is taken off it."""
        other = Machine(self.lab, name, ip, self.layer)
        subprocess.run(["cp", "-a", "--preserve=all", f"{self.disk}/upper/.", other.disk / "upper"], check=True)
        # An overlay must not see its layers change.
        other._unmount(other.root)
        mount("-t", "overlay", "none", "-o", f"lowerdir={self.layer}:{ROOT},upperdir={other.disk}/upper,workdir={other.disk}/work", other.root)
        other.put("/etc/machine-id", "")
        return other

    def resize(self, size=None):
        """Another size of the disk, also while the machine runs; without one, that of the beginning."""
        mount("-o", f"remount,size={size or self.size}", self.disk)

    def shrink(self):
        """Takes the room on the disk away, but for little."""
        now = os.statvfs(self.disk)
        self.resize((now.f_blocks - now.f_bfree) * now.f_frsize + 64 * 1024)

    # --- power ---

    def power_on(self):
        """Starts the machine; returns when its PID 1 runs."""
        self._network()
        groups = [str(group) for group in self._groups()]
        for group in groups:
            os.makedirs(group, exist_ok=True)
        enter = 'for group in $GROUPS_OF_ITS_OWN; do echo $$ > "$group/cgroup.procs"; done; exec "$@"'
        console = open(self.directory / "console.log", "ab")
        self.process = subprocess.Popen(
            ["sh", "-c", enter, "sh", "systemd-nspawn", "--quiet", f"--directory={self.root}", f"--machine={self.name}", "--register=no",
             "--keep-unit", f"--network-namespace-path=/run/netns/{self.lab.namespace(self.name)}", f"--capability={RIGHTS}",
             "--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=read-only", "--kill-signal=SIGRTMIN+3", "/sbin/power-on"],
            stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            env={**os.environ, "GROUPS_OF_ITS_OWN": " ".join(groups),
                 # As a VM has it: one hierarchy of cgroups, and /proc/sys/net of its own.
                 "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"})
        console.close()
        until(f"{self.name} has a PID 1", self._started, limit=20, pause=0.02)
        return self

    def _started(self):
        if self.process.poll() is not None:
            raise SystemExit(f"this machine cannot boot VMs: systemd-nspawn ended with {self.process.returncode}: {self.console()[-500:]}")
        return self.leader()

    def until_up(self, limit=120):
        """Waits until cloud-init has done all, and systemd has started what it starts."""
        def up():
            made = self.exec("sh", "-c", "test -e /run/cloud-init/result.json && systemctl is-system-running", check=False)
            return made.stdout.strip() in ("running", "degraded")
        until(f"{self.name} is up", up, limit=limit, pause=0.1)
        return self

    def reboot(self):
        """An orderly reboot; returns when the machine is up again."""
        self.exec("systemctl", "reboot", check=False)
        ended = self.process.wait(90)
        if ended != REBOOT:
            raise AssertionError(f"{self.name} did not reboot: {ended}")
        self._off()
        return self.power_on().until_up()

    def power_off(self):
        """An orderly shutdown."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(90)
        self._off()

    def power_loss(self):
        """Every process is gone at once, and so are /run and /tmp; the disk stays."""
        if self.process and self.process.poll() is None:
            leader = self.leader()
            # It must not get to tidy up.
            self.process.send_signal(signal.SIGSTOP)
            if leader:
                os.kill(leader, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            until(f"{self.name} is off", lambda: not pids(self._groups()), limit=20)
        self._off()

    def _off(self):
        """After the last process: a machine without power has no routes, rules and connections."""
        namespace = self.lab.namespace(self.name)
        # At once; with the namespace it would go some time later.
        subprocess.run(["ip", "-n", self.lab.namespace("cp"), "link", "del", self._port()], capture_output=True)
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)
        for group in self._groups():
            for directory, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
        self.process = None

    @contextlib.contextmanager
    def frozen(self):
        """No process of the machine runs meanwhile, as in a machine that is suspended or moved to another host."""
        group = self._groups()[0]
        (group / "cgroup.freeze").write_text("1")
        try:
            until("it is frozen", lambda: "frozen 1" in (group / "cgroup.events").read_text())
            yield
        finally:
            (group / "cgroup.freeze").write_text("0")

    def destroy(self):
        with contextlib.suppress(OSError, subprocess.SubprocessError, AssertionError):
            self.power_loss()
        for path in (self.root, self.disk):
            self._unmount(path)
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- inside ---

    def leader(self):
        """Its PID 1 as this machine sees it; `None` when it is off."""
        if self.process is None or self.process.poll() is not None:
            return None
        children = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            with contextlib.suppress(OSError):
                if field(child, "NSpid").split()[-1] == "1":
                    return int(child)
        return None

    def command(self, *args):
        """The command line that runs a command inside, with the rights of the machine's root and no more."""
        leader = self.leader()
        if leader is None:
            raise OSError(f"{self.name} is off")
        bounding = int(field(leader, "CapBnd"), 16)
        rights = ",".join(["-all", *(f"+cap_{bit}" for bit in range(41) if bounding >> bit & 1)])
        return ["nsenter", "--target", str(leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wdns=/", "--",
                "env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb",
                "setpriv", f"--bounding-set={rights}", "--", *map(str, args)]

    def exec(self, *args, check=True, **options):
        """Runs a command inside, as its root does over SSH."""
        options.setdefault("timeout", 120)
        if "input" not in options:
            options.setdefault("stdin", subprocess.DEVNULL)
        made = subprocess.run(self.command(*args), capture_output=True, text=True, **options)
        if check and made.returncode:
            raise AssertionError(f"{self.name}: {' '.join(map(str, args))} ended with {made.returncode}: {made.stdout[-1500:]}{made.stderr[-1500:]}")
        return made

    def shell(self, script, check=True, **options):
        return self.exec("bash", "-euc", script, check=check, **options)

    def journal(self, unit="vm-agent", *args):
        return self.exec("journalctl", "--unit", unit, "--no-pager", "--quiet", "--output=short-monotonic", *args, check=False).stdout

    def console(self):
        path = self.directory / "console.log"
        return path.read_text(errors="replace") if path.exists() else ""

    # --- its surroundings ---

    def _network(self):
        namespace = self.lab.namespace(self.name)
        port = self._port()
        for command in (
                ["ip", "netns", "add", namespace],
                ["ip", "-n", self.lab.namespace("cp"), "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace],
                ["ip", "-n", self.lab.namespace("cp"), "link", "set", port, "master", "br0", "up"],
                # The same at every boot, as a cloud gives it.
                ["ip", "-n", namespace, "link", "set", "eth0", "address", f"52:54:00:99:00:{int(self.ip.rpartition('.')[2]):02x}"]):
            subprocess.run(command, check=True, capture_output=True)

    def _port(self):
        """Its end on the bridge."""
        return f"{os.getpid() % 100000}{self.name}"[:15]

    def _groups(self):
        """Its cgroups, the unified hierarchy's first. Machines in one group would take each other's processes for their own."""
        found = []
        for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
            _, name, path = line.split(":", 2)
            if name == "":
                base = CGROUPS if (CGROUPS / "cgroup.controllers").exists() else CGROUPS / "unified"
                found.insert(0, base / path.lstrip("/"))
            elif name == "name=systemd":
                found.append(CGROUPS / "systemd" / path.lstrip("/"))
        return [group / self.lab.namespace(self.name) for group in found]

    def _unmount(self, path):
        subprocess.run(["umount", "--lazy", path], capture_output=True)


def mount(*args):
    subprocess.run(["mount", *map(str, args)], check=True)


def field(pid, name):
    """A field of /proc/PID/status."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise OSError(f"process {pid} has no {name}")


def pids(groups):
    """The processes in these cgroups and those below."""
    found = []
    for group in groups:
        for directory, _, _ in os.walk(group):
            with contextlib.suppress(OSError):
                found += (pathlib.Path(directory) / "cgroup.procs").read_text().split()
    return found
