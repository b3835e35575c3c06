"""What an ordinary user of a machine, or a fault that comes again and again, can do to the service: nothing that lasts."""

import os

from bed import curl, joined, status, until, until_ready
from case import Case

#: Run as an ordinary user: SECONDS, and then what is done all the time: `unix PATH`, or `tcp PORT` with requests of which only the beginning comes.
FLOOD = """
import socket, sys, time
seconds, kind, target = float(sys.argv[1]), sys.argv[2], sys.argv[3]
end, kept, tries = time.monotonic() + seconds, [], 0
while time.monotonic() < end:
    tries += 1
    try:
        if kind == "unix":
            with socket.socket(socket.AF_UNIX) as line:
                line.connect(target)
        else:
            line = socket.create_connection(("127.0.0.1", int(target)), timeout=1)
            line.setblocking(False)
            kept = (kept + [line])[-500:]
            line.send(b"GET / HTTP/1.1\\r\\nX: " + b"x" * 100_000)
    except OSError:
        pass
print(tries)
"""
#: Seconds of each flood; the promise is tried with 60.
FLOOD_SECONDS = os.environ.get("VM_AGENT_FLOOD_SECONDS", "8")
#: Somebody else has the agent's port.
TAKEN = "import socket, time; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind(('0.0.0.0', 15020)); s.listen(); time.sleep(600)"


class Attack(Case):
    @classmethod
    def setUpClass(cls):
        cls.web1, cls.vm = joined("web1", "client"), joined("web2", "details-legacy")

    def setUp(self):
        until_ready(self.vm)

    def shown(self, name):
        return self.vm.exec("systemctl", "show", "--value", f"--property={name}", "vm-agent.service").stdout.strip()

    def works(self):
        """The machine is in the mesh, and names are answered."""
        until_ready(self.vm)
        self.assertIn("240.", self.vm.exec("getent", "ahostsv4", "caller.internal.com").stdout)
        self.story(self.web1, self.vm)

    def test_twenty_quick_crashes_are_not_the_end(self):
        for number in range(20):
            pid = self.shown("MainPID")
            self.vm.exec("kill", "-9", pid)
            until(f"there is an agent after crash {number + 1}", lambda: self.shown("MainPID") not in ("0", pid), limit=20, pause=0.05)
        self.works()

    def test_a_port_that_is_taken_at_the_start_only_delays_it(self):
        self.vm.exec("systemctl", "stop", "vm-agent")
        self.vm.exec("systemd-run", "--quiet", "--unit=taken", "python3", "-c", TAKEN)
        self.addCleanup(self.vm.exec, "systemctl", "stop", "taken", check=False)
        until("the port is taken", lambda: ":15020" in self.vm.exec("ss", "-Hltn").stdout, pause=0.05)
        self.vm.exec("systemctl", "start", "--no-block", "vm-agent")
        until("it was tried often", lambda: int(self.shown("NRestarts")) >= 12, limit=60, pause=0.1)
        self.vm.exec("systemctl", "stop", "taken")
        self.works()

    def test_a_user_who_floods_every_socket_changes_nothing(self):
        self.vm.exec("tee", "/opt/legacy/flood.py", input=FLOOD)
        before, restarts = status(self.vm)["pid"], self.shown("NRestarts")
        for kind, target in (("unix", "/run/vm-agent/admin.sock"), ("unix", "/run/vm-agent/sds.sock"), ("unix", "/run/vm-agent/xds.sock"), ("tcp", "15020")):
            lines = len(self.vm.journal().splitlines())
            self.vm.exec("systemd-run", "--quiet", "--unit=flood", "--property=User=nobody", "python3", "/opt/legacy/flood.py", FLOOD_SECONDS, kind, target)
            asked = 0
            while self.vm.exec("systemctl", "is-active", "--quiet", "flood", check=False).returncode == 0:
                self.assertEqual(self.vm.exec("getent", "ahostsv4", "caller.internal.com", check=False).returncode, 0, f"no name during the flood of {target}")
                self.assertEqual(curl(self.vm, "http://localhost:15020/healthz/ready", user="root")[0], 200, f"no health page during the flood of {target}")
                asked += 1
            self.assertGreater(asked, 3)
            written = len(self.vm.journal().splitlines()) - lines
            self.assertLess(written, 50, f"the flood of {target} wrote {written} lines")
        self.assertEqual((status(self.vm)["pid"], self.shown("NRestarts")), (before, restarts), "the agent was restarted")
        memory = int(self.vm.exec("grep", "VmHWM", f"/proc/{before}/status").stdout.split()[1])
        self.assertLess(memory, 100 << 10, "kB")

    def test_nobody_but_root_reaches_what_is_for_root(self):
        for user in ("nobody", "istio-proxy"):
            for path in ("quitquitquit", "drain"):
                self.assertEqual(curl(self.vm, "-X", "POST", "-H", "X-Vm-Agent-Order: 1", f"http://localhost:15020/{path}", user=user)[0], 403)
        self.assertEqual(curl(self.vm, "http://localhost:15020/v1/status", user="istio-proxy")[0], 403)
        self.assertEqual(curl(self.vm, "--interface", "127.0.0.6", "http://localhost:15020/v1/status")[0], 403)
        self.assertEqual(curl(self.vm, "http://localhost:15020/v1/status")[0], 200)
        for user, sockets in (("nobody", ("admin", "sds", "xds")), ("istio-proxy", ("admin",))):
            for socket in sockets:
                made = self.vm.exec("setpriv", "--reuid", user, "--regid", user if user != "nobody" else "nogroup", "--clear-groups", "curl", "-sS", "--unix-socket",
                                    f"/run/vm-agent/{socket}.sock", "http://localhost/v1/status", check=False)
                self.assertEqual(made.returncode, 7, f"{user} at {socket}: {made.stdout}{made.stderr}")
        told = self.vm.exec("setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups", "vm-agent", "status", check=False)
        self.assertIn("only root may ask the agent", told.stderr)
        self.assertIn("sudo vm-agent status", told.stderr)
