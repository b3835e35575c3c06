"""What the service may do on its machine, by systemd's own measure and by trying what it must not do."""

import json
import re
import subprocess


import package
from bed import joined, until, until_ready
from case import Case

UNITS = ("vm-agent.service", "vm-agent-proxy.socket", "vm-agent-proxy@1.service", "vm-agent-ready.service", "vm-agent-ready.target",
         "vm-agent-capture.service")

#: Run by the agent itself, as the probe of an application: what a broken agent could do. Each attempt tells its outcome.
ATTEMPTS = r'''
import ctypes, json, os, pwd, socket, stat, subprocess
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *args):
    if libc.syscall(number, *args) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def run(*command):
    made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if made.returncode:
        raise OSError(0, (made.stderr or made.stdout).strip().splitlines()[-1:])

def write(path):
    with open(path, "a"):
        pass

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def list_any(path):
    if not os.listdir(path):
        raise OSError(0, "it is empty")

def setuid_program():
    with open("/var/lib/vm-agent/shell", "wb") as file:
        file.write(b"#!/bin/sh\n")
    os.chmod("/var/lib/vm-agent/shell", 0o4755)

def raw_socket(family):
    socket.socket(family, socket.SOCK_RAW, 0).close()

#: What of /run an agent needs; everything else there is for others, who may be as good as root.
NEEDED = ("/run/vm-agent/", "/run/vm-agent-proxy/launch.sock", "/run/systemd/notify", "/run/systemd/resolve/", "/run/systemd/journal/dev-log",
          "/run/systemd/journal/socket", "/run/systemd/journal/stdout", "/run/xtables.lock")

def sockets_of_others():
    found = [os.path.join(directory, name) for directory, _, names in os.walk("/run") for name in names]
    if not [path for path in found if not path.startswith(NEEDED) and stat.S_ISSOCK(os.lstat(path).st_mode)]:
        raise OSError(0, "there are none")

def order(**what):
    """Has the launcher of the proxy start something."""
    usual = {"binary": "/bin/true", "user": {"uid": 1, "gid": 1}, "transparent": False, "directory": "/run/vm-agent", "fingerprint": "x", "args": []}
    with socket.socket(socket.AF_UNIX) as line, open("/dev/null", "w") as output:
        line.settimeout(10)
        line.connect("/run/vm-agent-proxy/launch.sock")
        text = (json.dumps({**usual, **what}) + "\n").encode()
        socket.send_fds(line, [text[:1]], [output.fileno()])
        line.sendall(text[1:])
        answer = line.makefile().readline()
    if not answer.startswith("started"):
        raise OSError(0, answer.strip())

PROXY = pwd.getpwnam("istio-proxy")
ATTEMPTS = {
    "see sockets of others": sockets_of_others,
    "have a program started as another user": lambda: order(),
    "have a program started in another directory": lambda: order(user={"uid": PROXY.pw_uid, "gid": PROXY.pw_gid}, directory="/"),
    **{f"write {path}": lambda path=path: write(path) for path in (
        "/etc/vm-agent/config.yaml", "/etc/vm-agent/attempt", "/etc/attempt", "/etc/cron.d/attempt", "/etc/systemd/system/attempt.service", "/etc/passwd", "/usr/bin/attempt", "/usr/bin/vm-agent",
        "/boot/attempt", "/opt/attempt", "/var/lib/attempt", "/var/log/attempt", "/var/spool/attempt", "/run/attempt", "/dev/shm/attempt", "/root/attempt", "/home/attempt",
        "/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger")},
    "list /root": lambda: list_any("/root"),
    "list /home": lambda: list_any("/home"),
    "read what another user only may read": lambda: read("/opt/legacy/private"),
    "make the disk writable": lambda: run("mount", "-o", "remount,rw", "/"),
    "mount a file system": lambda: run("mount", "-t", "tmpfs", "none", "/mnt"),
    "make a set-user-ID program": setuid_program,
    "sudo": lambda: run("sudo", "-n", "true"),
    "become another user": lambda: os.setresuid(1, 1, 1),
    "become another group": lambda: os.setresgid(1, 1, 1),
    "give a file away": lambda: (write("/var/lib/vm-agent/given"), os.chown("/var/lib/vm-agent/given", 1, 1)),
    "load a kernel module": lambda: call(175, b"", 0, b""),
    "a user namespace": lambda: call(272, 0x10000000),
    "a mount namespace": lambda: call(272, 0x00020000),
    "set the clock": lambda: __import__("time").clock_settime(0, __import__("time").time()),
    "set the host name": lambda: socket.sethostname("attempt"),
    "trace the first process": lambda: call(101, 16, 1, 0, 0),
    "a control group": lambda: os.mkdir("/sys/fs/cgroup/attempt"),
    "a device": lambda: os.mknod("/var/lib/vm-agent/device", 0o60600, os.makedev(7, 0)),
    "the kernel's log": lambda: read("/dev/kmsg"),
    "a BPF program": lambda: call(321, 5, b"", 0),
    "a performance event": lambda: call(298, b"\0" * 128, 0, -1, -1, 0),
    "a key ring": lambda: call(250, 1, b"attempt"),
    "reboot": lambda: call(169, 0xfee1dead, 672274793, 0x89abcdef, 0),
    "a packet socket": lambda: raw_socket(socket.AF_PACKET),
    "a Bluetooth socket": lambda: socket.socket(31, socket.SOCK_RAW, 0).close(),
    "real-time scheduling": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    "more memory locked": lambda: __import__("resource").setrlimit(8, (1 << 40, 1 << 40)),
    "a transient unit of systemd": lambda: run("systemd-run", "--wait", "true"),
}
with open("/var/lib/vm-agent/attempts", "w") as told:
    for name, attempt in ATTEMPTS.items():
        try:
            attempt()
            told.write(f"{name}\tDONE\n")
        except BaseException as error:
            told.write(f"{name}\trefused: {error}\n")
    told.write("end\tend\n")
'''


class Sandbox(Case):
    @classmethod
    def setUpClass(cls):
        cls.vm = joined("web2", "details-legacy")

    def test_exposure_is_at_most_2_0_by_systemds_own_measure(self):
        told = self.vm.exec("systemd-analyze", "security", "--no-pager", "vm-agent.service").stdout
        exposure = float(re.search(r"Overall exposure level for vm-agent\.service: ([\d.]+)", told)[1])
        print(f"exposure level {exposure}")
        self.assertLessEqual(exposure, 2.0, told)

    def test_systemd_and_lintian_find_nothing_wrong(self):
        verified = self.vm.exec("systemd-analyze", "verify", "--man=no", *UNITS, check=False)
        self.assertEqual((verified.returncode, verified.stdout + verified.stderr), (0, ""))
        linted = subprocess.run(["lintian", "--allow-root", "--fail-on", "error,warning", package.made()], capture_output=True, text=True)
        self.assertEqual((linted.returncode, linted.stdout), (0, ""), linted.stderr)

    def test_the_service_cannot_do_what_it_need_not_do(self):
        self.vm.exec("tee", "/opt/legacy/attempts.py", input=ATTEMPTS)
        self.vm.shell("install -m 600 -o nobody /dev/null /opt/legacy/private; mkdir -p /home/somebody; touch /root/something")
        self.addCleanup(self.vm.shell, "rm -f /var/lib/vm-agent/attempts /var/lib/vm-agent/shell /var/lib/vm-agent/given; vm-agent reload")
        config = self.vm.exec("cat", "/etc/vm-agent/config.yaml").stdout
        self.addCleanup(self.vm.exec, "tee", "/etc/vm-agent/config.yaml", input=config)
        probe = {"probe": {"exec": {"command": ["/usr/bin/python3", "/opt/legacy/attempts.py"]}, "periodSeconds": 1, "timeoutSeconds": 20}}
        self.vm.exec("tee", "/etc/vm-agent/config.yaml", input=f"{config}\nhealth: {json.dumps(probe)}\n")
        self.vm.exec("systemctl", "restart", "vm-agent")
        told = lambda: self.vm.exec("cat", "/var/lib/vm-agent/attempts", check=False).stdout
        lines = until("the attempts are over", lambda: told() if "end\tend" in told() else None, limit=60).splitlines()[:-1]
        done = [line for line in lines if "\trefused" not in line]
        self.assertEqual(done, [], "\n".join(lines))
        self.assertGreater(len(lines), 40)

    def test_the_service_can_do_what_it_has_to_do(self):
        """Its one writable file of the configuration, names, and a configuration that is replaced while it runs."""
        pid = self.vm.exec("systemctl", "show", "--value", "--property=MainPID", "vm-agent").stdout.strip()
        inside = lambda *command: self.vm.exec("nsenter", "--target", pid, "--mount", *command)
        inside("sh", "-c", "cat /etc/vm-agent/root-cert.pem > /tmp/roots && cat /tmp/roots > /etc/vm-agent/root-cert.pem")
        self.assertIn("nameserver", inside("cat", "/etc/resolv.conf").stdout)
        self.vm.shell("cp -a /etc/vm-agent/config.yaml /etc/vm-agent/new.yaml; echo '# changed' >> /etc/vm-agent/new.yaml; mv /etc/vm-agent/new.yaml /etc/vm-agent/config.yaml")
        self.assertIn("# changed", inside("cat", "/etc/vm-agent/config.yaml").stdout)

    def test_rules_are_tried_with_other_users_connections_all_the_same(self):
        self.assertEqual(until_ready(self.vm)["capture"]["probed"], "connections are redirected in both directions")

    def test_the_proxy_has_a_user_of_its_own_and_no_rights(self):
        pid = until_ready(self.vm)["proxy"]["pid"]
        told = dict(line.split(":\t", 1) for line in self.vm.exec("cat", f"/proc/{pid}/status").stdout.splitlines() if ":\t" in line)
        user = self.vm.exec("id", "-u", "istio-proxy").stdout.strip()
        self.assertEqual(set(told["Uid"].split()), {user})
        # What it has none of, it cannot get either: the bounding set does not matter with NoNewPrivs.
        self.assertEqual({told[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")}, {"0" * 16})
        self.assertEqual((told["NoNewPrivs"], told["Seccomp"]), ("1", "2"))
