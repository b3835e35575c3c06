"""The lab of the chaos tier: a real control plane, four machines in two services, and a load on each machine."""

import datetime
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

# Behind this directory: its modules have names of their own.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "istio"))

from lab import CONTROL_PLANE, Lab, Timeout, until  # noqa: E402
from vm import AGENT, Vm  # noqa: E402

HERE = pathlib.Path(__file__).parent
APP = HERE.parent / "istio/app.py"
SERVICES = {"alpha": ("a1", "a2"), "beta": ("b1", "b2")}
#: Machine: service. Each calls the other service, so that there is traffic in both directions.
SERVICE_OF = {machine: service for service, machines in SERVICES.items() for machine in machines}
OTHER = {"alpha": "beta", "beta": "alpha"}
VIRTUAL = {"alpha": "240.2.0.1", "beta": "240.2.0.2"}
ADDRESSES = {"a1": "10.99.0.11", "a2": "10.99.0.12", "b1": "10.99.0.21", "b2": "10.99.0.22"}
#: These have a clock that can be stepped; one of each service, as the library that does it costs time.
STEPPED = ("a2", "b2")
#: Seconds of a certificate's life; it is renewed after 30 to 40 % of it.
LIFE = 60
API_PORT, GATE_PORT = 6443, 6444
#: Bytes of the state directory's own file system: a few times what an agent keeps.
STATE_SIZE = "4m"
FAKETIME = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class World(Lab):
    """The control plane, whose processes can be stopped and started again."""

    def __init__(self):
        super().__init__()
        self.commands, self.machines = {}, {}
        #: Held by whoever uses the API as an operator, and by faults that take it away.
        self.operator = threading.Lock()

    def start(self, name, *command, log, **options):
        process = super().start(name, *command, log=log, **options)
        self.commands[log] = (name, command, options, process)
        return process

    def again(self, log):
        """Starts a process anew with the command that it had."""
        name, command, options, _ = self.commands[log]
        return self.start(name, *command, log=log, **options)

    def process(self, log):
        return self.commands[log][3]

    def api_ready(self):
        return self.kubectl("get", "--raw", "/readyz", check=False, timeout=10).returncode == 0

    @property
    def gate_ca(self):
        return self.directory / "gate-ca.pem"

    def set_gate(self, mode):
        path = self.directory / "gate"
        path.with_suffix(".new").write_text(mode)
        path.with_suffix(".new").rename(path)

    def build(self):
        self.up()
        self.kubectl("apply", "-f", HERE / "services.yaml")
        self.set_gate("pass")
        certificate, key = self.directory / "gate.pem", self.directory / "gate.key"
        make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
        subprocess.run([*make, "-subj", "/O=ca", "-keyout", self.directory / "gate-ca.key", "-out", self.gate_ca], check=True, capture_output=True)
        subprocess.run([*make, "-subj", "/O=gate", "-addext", f"subjectAltName=IP:{CONTROL_PLANE}", "-addext", "basicConstraints=critical,CA:FALSE",
                        "-CA", self.gate_ca, "-CAkey", self.directory / "gate-ca.key", "-keyout", key, "-out", certificate], check=True, capture_output=True)
        self.start("cp", sys.executable, HERE / "gate.py", self.directory, CONTROL_PLANE, GATE_PORT, API_PORT, certificate, key, log="gate.log")
        until("the gate listens", lambda: "listening" in self.log("gate.log"))
        for group in SERVICES:
            self.configure(group)
        clients = self.directory / "clients"
        clients.mkdir()
        clients.chmod(0o777)
        for name, service in SERVICE_OF.items():
            self.machines[name] = Machine(self, name, ADDRESSES[name], service)
        for machine in self.machines.values():
            machine.begin()
        for machine in self.machines.values():
            machine.until_ready(limit=180)

    def in_traffic(self, service):
        """Whether all machines of a service are healthy by their entries, and endpoints for all callers."""
        healthy = {entry["spec"]["address"] for entry in self.entries(timeout=10).values() for one in entry.get("status", {}).get("conditions", ())
                   if (one["type"], one["status"]) == ("Healthy", "True")}
        return {ADDRESSES[name] for name in SERVICES[service]} <= healthy and self.endpoints_known((service,))

    def endpoints_known(self, services=tuple(SERVICES)):
        """Whether the Envoy of each machine that calls these services has both endpoints."""
        for machine in self.machines.values():
            service = OTHER[machine.group]
            if service not in services:
                continue
            wanted = {ADDRESSES[name] for name in SERVICES[service]}
            lines = machine.admin("/clusters").splitlines()
            cluster = f"outbound|80||{service}.internal.com::10."
            found = {line.split("::")[1].split(":")[0] for line in lines if line.startswith(cluster)}
            if found != wanted:
                return False
        return True

    def load(self, pace):
        """Starts the load of each machine."""
        for name, machine in self.machines.items():
            other = OTHER[machine.group]
            machine.client = self.start(name, sys.executable, HERE / "client.py", self.directory / f"clients/{name}", name, VIRTUAL[other], VIRTUAL[other], f"{other}.internal.com", str(pace),
                                        log=f"client-{name}.log")

    def records(self):
        """Everything that the loads have written, complete lines only."""
        found = []
        for path in sorted((self.directory / "clients").iterdir()):
            lines = path.read_text().split("\n")
            found += [json.loads(line) for line in lines[:-1]]
        return found

    def down(self):
        for process in self.processes:
            # What is stopped by a signal does not hear another one.
            if process.poll() is None:
                os.kill(process.pid, signal.SIGCONT)
        for machine in self.machines.values():
            subprocess.run(["umount", "-l", machine.state], capture_output=True)
        super().down()


class Machine(Vm):
    """A VM whose agent is a service: unit.py stands for systemd."""

    def __init__(self, world, name, ip, group):
        super().__init__(world, name, ip, group)
        self.capture, self.unit, self.client = "nftables", None, None
        self.files_of_app = world.directory / f"served-{name}"
        self.files_of_app.mkdir()
        self.unit_directory = world.directory / f"unit-{name}"
        self.unit_directory.mkdir(mode=0o700)
        self.state = self.root / "var/lib/vm-agent"
        self.state.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={STATE_SIZE},mode=0700", "chaos-state", self.state], check=True)
        world.vm(name, ip)

    @property
    def kubernetes(self):
        return self.group == "beta"

    def settings(self):
        given = ["--set", f"identity.ttl={LIFE}s", "--set", "identity.renewAt=0.35", "--set", "identity.renewJitter=0.05",
                 "--set", "health.probe={httpGet: {path: /health, port: 9080}, periodSeconds: 1}"]
        if self.kubernetes:
            token = self.lab.directory / f"kube-token-{self.name}"
            token.write_text(self.lab.token(self.group, "https://kubernetes.default.svc", duration="24h"))
            given += ["--registration", "kubernetes", "--kube-server", f"https://{CONTROL_PLANE}:{GATE_PORT}", "--kube-ca", self.lab.gate_ca,
                      "--kube-token-file", token, "--label", f"app={self.group}"]
        return given

    def set_clock(self, seconds):
        path = self.unit_directory / "clock"
        path.with_suffix(".new").write_text(f"{seconds:+d}\n")
        path.with_suffix(".new").rename(path)

    def begin(self):
        """The program, and the agent's first start, which joins."""
        self.lab.start(self.name, sys.executable, APP, self.name, self.files_of_app, log=f"app-{self.name}.log")
        environment = {}
        if self.name in STEPPED and FAKETIME:
            self.set_clock(0)
            environment = {"CHAOS_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(self.unit_directory / "clock"),
                           "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
        self.unit = self.lab.start(self.name, sys.executable, HERE / "unit.py", self.unit_directory, AGENT, self.root, "--",
                                   *self.join_command(*self.settings()), log=f"{self.name}.log", environment=environment)

    def agent_pid(self):
        """The agent's process, or None while there is none."""
        try:
            return int((self.unit_directory / "agent.pid").read_text())
        except (OSError, ValueError):
            return None

    def signal_unit(self, number):
        os.kill(self.unit.pid, number)

    def proxy_pid(self):
        return self.status().get("proxy", {}).get("pid")

    def is_ready(self):
        return bool(self.status().get("ready"))

    def until_ready(self, limit=120):
        try:
            until(f"{self.name} is ready", self.is_ready, limit=limit, pause=0.2)
        except Timeout as late:
            raise Timeout(f"{late}: {self.command('status').stdout}") from None

    def reload(self, section, values):
        """Changes the configuration and has it read again. The form of the file is JSON-like YAML that the agent's own join wrote."""
        path = self.root / "etc/vm-agent/config.yaml"
        self.lab.run(self.name, sys.executable, "-c", CHANGE, path, json.dumps({section: values}))
        return self.command("reload")

    def certificates(self):
        """When each certificate of this machine ends, by the system's monotonic clock. The times are istiod's, not those of a stepped clock."""
        offset = time.time() - time.monotonic()
        ends = re.findall(r'INFO New certificate\..* not_after="([^"]+)"', self.log())
        return [datetime.datetime.fromisoformat(end.replace("Z", "+00:00")).timestamp() - offset for end in ends]

    def rules(self):
        """The host's redirect rules without what counts on."""
        listed = self.lab.run(self.name, "nft", "--stateless", "list", "ruleset", check=False).stdout
        return [line.strip() for line in listed.splitlines() if line.strip()]


# Sets values in a section of the file; a map is a block of its own.
CHANGE = """
import json, sys
path, change = sys.argv[1], json.loads(sys.argv[2])
lines = open(path).read().split("\\n")
def block_end(at, indent):
    end = at + 1
    while end < len(lines) and lines[end].startswith(indent + " "):
        end += 1
    return end
for section, values in change.items():
    if section + ":" not in lines:
        lines[0:0] = [section + ":"]
    at = lines.index(section + ":")
    for name, value in values.items():
        found = next((i for i in range(at + 1, block_end(at, "")) if lines[i].startswith("  " + name + ":")), None)
        if isinstance(value, dict):
            if found is None:
                lines[at + 1:at + 1] = ["  " + name + ":"]
                found = at + 1
            for key, inner in value.items():
                old = next((i for i in range(found + 1, block_end(found, "  ")) if lines[i].startswith("    " + key + ":")), None)
                new = "    " + key + ": " + json.dumps(inner)
                if old is None:
                    lines[found + 1:found + 1] = [new]
                else:
                    lines[old] = new
        else:
            new = "  " + name + ": " + json.dumps(value)
            if found is None:
                lines[at + 1:at + 1] = [new]
            else:
                lines[found] = new
open(path, "w").write("\\n".join(lines))
"""
