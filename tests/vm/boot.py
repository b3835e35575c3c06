"""What strangers get from a machine that boots: under a closed fail policy nothing, from the first service on."""

import json
import subprocess
import sys


import bed
from bed import LAB, joined, status, until, until_ready
from case import Case

#: A program that answers as early as any service can, at a port that the machine's WorkloadGroup names.
EARLY = """
[Unit]
Description=A program that serves from early boot on
DefaultDependencies=no
After=sysinit.target
[Service]
ExecStart=/usr/bin/python3 -m http.server 9080 --directory /opt/legacy
[Install]
WantedBy=basic.target
"""
#: Calls until it is told to end; tells the outcomes: how many were answered, refused, or not reached.
CALLER = r"""
import json, sys, threading, time, urllib.request
told, ended = {"answered": 0, "refused": 0, "other": 0}, threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
while not ended.is_set():
    try:
        urllib.request.urlopen(sys.argv[1], timeout=1).read()
        told["answered"] += 1
    except OSError as error:
        refused = "refused" in str(error) or "reset" in str(error)
        told["refused" if refused else "other"] += 1
    time.sleep(0.01)
print(json.dumps(told))
"""


class Stranger:
    """Calls a machine from outside of the mesh, without a pause."""

    def __init__(self, machine):
        command = ["ip", "netns", "exec", LAB.namespace("cp"), sys.executable, "-c", CALLER, f"http://{machine.ip}:9080/"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def told(self):
        out, _ = self.process.communicate(timeout=20)
        return json.loads(out)


class Boot(Case):
    def boots(self, policy):
        """What a stranger gets while the machine boots without istiod, until all services have started."""
        vm = joined("boot", "details-legacy")
        vm.exec("tee", "/etc/systemd/system/early.service", input=EARLY)
        vm.shell("mkdir -p /etc/systemd/system/vm-agent.service.d")
        vm.exec("tee", "/etc/systemd/system/vm-agent.service.d/policy.conf", input=f"[Service]\nEnvironment=VM_AGENT_CAPTURE_FAIL_POLICY={policy}\n")
        vm.shell("systemctl daemon-reload; systemctl disable --now legacy; systemctl enable early; systemctl restart vm-agent")
        until_ready(vm)
        until("the rules are of this policy", lambda: status(vm)["capture"]["phase"] == "active")
        LAB.istiod_stop()
        self.addCleanup(self.istiod_again, vm)
        stranger = Stranger(vm)
        vm.reboot()
        serves = lambda: vm.exec("curl", "-fsS", "-o", "/dev/null", "http://127.0.0.1:9080/", check=False).returncode == 0
        until("the early program serves within the machine", serves)
        told = stranger.told()
        print(f"{policy}: {told}", file=sys.stderr)
        return vm, told

    def istiod_again(self, vm):
        LAB.istiod_start()
        until_ready(vm)

    def test_closed_is_closed_from_early_boot_on(self):
        vm, told = self.boots("closed")
        self.assertEqual(told["answered"], 0, vm.journal("vm-agent-capture"))
        self.assertGreater(told["refused"], 0)
        self.assertEqual(vm.exec("systemctl", "show", "-P", "ActiveState", "vm-agent-capture").stdout.strip(), "active")

    def test_open_is_open_until_the_proxy_is_ready(self):
        vm, told = self.boots("open")
        self.assertGreater(told["answered"], 0)
        self.assertEqual(vm.exec("systemctl", "show", "-P", "ActiveState", "vm-agent-capture").stdout.strip(), "inactive")
