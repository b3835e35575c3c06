"""What callers lose while things happen to a machine of the mesh: a steady load in both directions, and everything lost is counted.

Wherever Envoy itself is not killed nothing may be lost, and Envoy has to be the same process before and after. What the rest
loses is printed, beside what is lost of it at all.
"""

import collections
import contextlib
import json
import subprocess
import time

import bed
import package
from bed import joined, status, until, until_ready
from case import CALLER, DETAILS, Case, table
from machine import field

#: Of the package, as the tests make it.
NEXT = "9.0.0-1"
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


class Load:
    """A steady load from a machine."""

    def __init__(self, machine, url):
        self.name, self.seen = f"{machine.name} to {url}", None
        self.process = subprocess.Popen(machine.command("python3", "/opt/legacy/load.py", url), stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, start_new_session=True)

    def until_under_way(self):
        line = self.process.stdout.readline()
        if line.strip() != "under way":
            raise AssertionError(f"the load of {self.name} did not begin: {line}")

    def end(self):
        self.seen = json.loads(self.process.communicate(timeout=60)[0])
        return self.seen

    def drop(self):
        """Where its machine went away."""
        self.process.kill()
        self.process.communicate()


class Disruption(Case):
    ROWS = [("what happened to web2", "took", "direction", "callers", "sent", "lost", "slow", "slowest", "Envoy", "lost as")]

    @classmethod
    def setUpClass(cls):
        for name, group in (("web1", "client"), ("web2", "details-legacy")):
            if name not in bed.MACHINES:
                bed.boot(name, bed.with_url(group))
        cls.web1, cls.web2 = joined("web1", "client"), joined("web2", "details-legacy")

    @classmethod
    def tearDownClass(cls):
        table("What callers lost (20 requests a second of each kind and direction; slow is over 1 s):", cls.ROWS)

    def setUp(self):
        until_ready(self.web2)
        self.story(self.web1, self.web2)

    @contextlib.contextmanager
    def load(self, what, *directions):
        """A load around what happens; gives the losses, by direction and kind, once it is over."""
        loads = [Load(*direction) for direction in directions or ((self.web1, DETAILS), (self.web2, CALLER))]
        losses = {}
        try:
            for load in loads:
                load.until_under_way()
            before, began = proxy(self.web2), time.monotonic()
            yield losses
            took = time.monotonic() - began
            # As many requests as there were before.
            time.sleep(1)
        except BaseException:
            for load in loads:
                load.drop()
            raise
        for load in loads:
            for kind, seen in load.end().items():
                losses[load.name, kind] = seen["lost"]
                self.ROWS.append((what, f"{took:.1f} s", load.name, kind, seen["sent"], len(seen["lost"]), seen["slow"],
                                  f"{seen['slowest']:.2f} s", "the same" if proxy(self.web2) == before else "another", in_words(seen["lost"])))

    def unharmed(self, what, act):
        """It happens under load: nothing is lost, and Envoy is the same process."""
        before = proxy(self.web2)
        with self.load(what) as losses:
            act()
        self.assertEqual([f"{' '.join(where)}: {len(lost)} lost, {in_words(lost)}" for where, lost in losses.items() if lost], [])
        self.assertEqual(proxy(self.web2), before, "Envoy is another process")

    def another_agent(self, act):
        """Acts, and waits until another agent than before is ready."""
        before = status(self.web2)["pid"]
        act()
        until("another agent runs", lambda: status(self.web2).get("pid") not in (None, before), limit=90, pause=0.1)
        until_ready(self.web2)

    def test_systemctl_restart(self):
        self.unharmed("systemctl restart", lambda: self.another_agent(lambda: self.web2.exec("systemctl", "restart", "vm-agent")))

    def test_systemctl_reload(self):
        def reload():
            reads = status(self.web2)["configuration"]["reads"]
            self.web2.exec("systemctl", "reload", "vm-agent")
            until("it was read", lambda: status(self.web2)["configuration"]["reads"] > reads)
        self.unharmed("systemctl reload", reload)

    def test_a_join_as_another_workload_is_refused_while_the_machine_serves(self):
        name = bed.bundle("client").name
        self.web2.exec("curl", "-sSf", "-o", "/run/other.yaml", f"http://{bed.GATEWAY}:8000/{name}")
        before = status(self.web2)["pid"]

        def refused():
            for more in (["--dry-run"], []):
                made = self.web2.exec("vm-agent", "join", "/run/other.yaml", *more, check=False)
                self.assertEqual(made.returncode, 7, made.stderr)
                self.assertIn("`vm-agent leave` first", made.stderr)
        self.unharmed("join as another workload", refused)
        after = status(self.web2)
        self.assertEqual((after["pid"], after["ready"]), (before, True))
        self.assertEqual(self.web2.exec("find", "/var/lib/vm-agent", "-name", "*.corrupt").stdout, "")

    def test_upgrade_of_the_package(self):
        package.again(bed.SERVED / "vm-agent.deb", bed.SERVED / "later.deb", version=NEXT)
        self.web2.exec("curl", "-sSf", "-o", "/run/later.deb", f"http://{bed.GATEWAY}:8000/later.deb")
        # An older version's service was enabled alone.
        self.web2.exec("systemctl", "disable", "vm-agent-capture")
        self.unharmed("upgrade of the package", lambda: self.another_agent(lambda: self.web2.exec("apt-get", "install", "-y", "/run/later.deb")))
        self.assertIn(NEXT, self.web2.exec("dpkg-query", "-W", "vm-agent").stdout)
        self.assertEqual(self.web2.exec("systemctl", "is-enabled", "vm-agent-capture", check=False).stdout.strip(), "enabled")

    def test_agent_killed(self):
        self.unharmed("agent: kill -9", lambda: self.another_agent(lambda: self.web2.exec("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "vm-agent")))

    def test_agent_frozen_until_the_watchdog_ends_it(self):
        self.unharmed("agent frozen, until the watchdog", lambda: self.another_agent(
            lambda: self.web2.exec("systemctl", "kill", "--kill-whom=main", "--signal=STOP", "vm-agent")))
        shown = self.web2.journal()
        self.assertIn("Watchdog timeout", shown)

    def test_envoy_killed(self):
        before = proxy(self.web2)
        with self.load("Envoy: kill -9"):
            self.web2.exec("kill", "-9", before[0])
            until("another Envoy runs", lambda: proxy(self.web2) not in (None, before), limit=60, pause=0.1)
            until_ready(self.web2)

    def test_reboot_while_another_machine_serves(self):
        self.away("reboot, another machine serves", self.web2.reboot)

    def test_power_loss_while_another_machine_serves(self):
        self.away("power loss, another machine serves", lambda: (self.web2.power_loss(), self.web2.power_on().until_up()))

    def away(self, what, act):
        """The machine is away for a while; callers have another one of the service."""
        other = joined("web3", "details-legacy")
        until("both machines serve", lambda: f"{other.ip}:9080::health_flags::healthy" in endpoints(self.web1), limit=30)
        with self.load(what, (self.web1, DETAILS)):
            act()
            until_ready(self.web2)

    def test_clock_that_jumps_while_the_machine_is_suspended(self):
        # The agent's clock follows a file; a machine in a container cannot have one of its own.
        self.web2.shell(f"""mkdir -p /run/systemd/system/vm-agent.service.d; echo +0 > /opt/legacy/clock
            printf '%s\\n' '[Service]' WatchdogSec=5 'Environment=LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE=/opt/legacy/clock' \\
              'Environment=FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1' > /run/systemd/system/vm-agent.service.d/clock.conf
            systemctl daemon-reload; systemctl restart vm-agent""")
        self.addCleanup(self.web2.shell, "rm /run/systemd/system/vm-agent.service.d/clock.conf; systemctl daemon-reload; systemctl restart vm-agent")
        before = until_ready(self.web2)["identity"]["serial"]

        def suspended():
            with self.web2.frozen():
                time.sleep(8)
                (self.web2.root / "opt/legacy/clock").write_text("+20h\n")
            until("the certificate was renewed", lambda: until_ready(self.web2)["identity"]["serial"] != before, limit=60)
        self.unharmed("suspended for 8 s, and the clock is 20 h ahead", suspended)


def in_words(lost):
    """How requests were lost, and when after the load had begun."""
    if not lost:
        return ""
    ways = collections.Counter(why for _, why in lost)
    return f"{', '.join(f'{why} ({count})' for why, count in ways.most_common(3))}, at {lost[0][0]} to {lost[-1][0]} s"


def endpoints(machine):
    """What a machine's proxy knows of others."""
    return machine.exec("curl", "-s", "http://127.0.0.1:15000/clusters").stdout


def proxy(machine):
    """Which process Envoy is: its number, and when it started."""
    pid = status(machine).get("proxy", {}).get("pid")
    if not pid:
        return None
    stat = machine.exec("cat", f"/proc/{pid}/stat", check=False).stdout
    return (pid, stat.rpartition(")")[2].split()[19]) if stat else None
