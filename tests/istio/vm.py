"""One VM with vm-agent in a lab's namespace."""

import json
import os
import pathlib
import subprocess

from lab import BIN, until

AGENT = pathlib.Path(os.environ.get("VM_AGENT", pathlib.Path(__file__).parents[2] / "target/release/vm-agent")).absolute()
ENVOY = pathlib.Path(os.environ.get("ENVOY") or BIN / "envoy").absolute()
#: Starts at once and does nothing, for tests that are not about the proxy.
FAKE_ENVOY = pathlib.Path(__file__).parents[1] / "fakes/envoy"


# The configuration is YAML; the agent writes it so that a JSON reader of its subset is enough here.
CHANGE = """
import json, sys
path, change = sys.argv[1], json.loads(sys.argv[2])
lines = open(path).read().split("\\n")
for section, values in change.items():
    at = lines.index(section + ":")
    for name, value in values.items():
        end = at + 1
        while end < len(lines) and lines[end].startswith("  "):
            end += 1
        block = next((i for i in range(at + 1, end) if lines[i].startswith("  " + name + ":")), None)
        if isinstance(value, dict):
            new = ["    " + k + ": " + json.dumps(v) for k, v in value.items()]
            if block is None:
                lines[at + 1:at + 1] = ["  " + name + ":"] + new
            else:
                lines[block + 1:block + 1] = new
        else:
            lines[at + 1:at + 1] = ["  " + name + ": " + json.dumps(value)]
open(path, "w").write("\\n".join(lines))
"""


class Vm:
    def __init__(self, lab, name, ip, group):
        self.lab, self.name, self.ip, self.group = lab, name, ip, group
        # Closed to every other user, as temporary directories are: Envoy's user must not need the way there.
        private = lab.directory / f"private-{name}"
        private.mkdir(mode=0o700, exist_ok=True)
        self.root = private / "root"
        self.root.mkdir(exist_ok=True)
        self.process = None
        self.capture = "none"

    def join_command(self, *args, source=None):
        source = source or self.lab.join_directory(self.group)
        return [AGENT, "join", source, "--root", self.root, "--foreground", "--name", self.name, "--address", self.ip,
                "--proxy-binary", ENVOY, "--capture", self.capture, *args]

    def join(self, *args, source=None):
        """Joins in the foreground; returns at once."""
        self.process = self.lab.start(self.name, *self.join_command(*args, source=source), log=f"{self.name}.log")
        return self

    def run(self, *args):
        """Starts the daemon of a machine that has joined."""
        self.process = self.lab.start(self.name, AGENT, "--root", self.root, "run", *args, log=f"{self.name}.log")
        return self

    def try_join(self, *args, source=None):
        """Joins where it must fail; returns the ended process."""
        return self.lab.run(self.name, *self.join_command(*args, source=source), check=False, timeout=90)

    def command_line(self, *args):
        return [AGENT, "--root", self.root, *args]

    def command(self, *args, check=False):
        return self.lab.run(self.name, *self.command_line(*args), check=check)

    def configure(self, change):
        """Changes the configuration and has it read again."""
        made = self.lab.run(self.name, "python3", "-c", CHANGE, self.root / "etc/vm-agent/config.yaml", json.dumps(change))
        if made.returncode or (made := self.command("reload")).returncode:
            raise AssertionError(made.stderr)

    def status(self):
        made = self.command("status", "--json")
        return json.loads(made.stdout) if made.stdout else {}

    def until_ready(self, limit=60):
        """Waits until the status says so and Envoy's health page agrees."""
        def ready():
            if self.process and self.process.poll() is not None:
                raise SystemError(f"{self.name} ended with {self.process.returncode}: {self.log()[-1500:]}")
            return self.status().get("ready") and self.health_page() == 200
        until(f"{self.name} is ready", ready, limit=limit)
        return self.status()

    def health_page(self):
        host = "[::1]" if ":" in self.ip else "127.0.0.1"
        return self.lab.curl(self.name, f"http://{host}:15021/healthz/ready", user=0)[0]

    def admin(self, path):
        """Envoy's admin interface."""
        return self.lab.run(self.name, "curl", "-sf", "-m", "5", f"http://127.0.0.1:15000{path}").stdout

    def certificates(self):
        """What Envoy holds: identities and serials of its own certificates."""
        chains = [chain for one in json.loads(self.admin("/certs"))["certificates"] for chain in one.get("cert_chain", [])]
        return [(san.get("uri"), chain["serial_number"]) for chain in chains for san in chain.get("subject_alt_names", [])]

    def stats(self, expression):
        lines = self.admin(f"/stats?filter={expression}").splitlines()
        return {name: int(value) for name, _, value in (line.rpartition(": ") for line in lines) if value.isdigit()}

    def stop(self, limit=40):
        """SIGTERM, as a service manager sends it; returns the exit status."""
        return self.lab.stop(self.process, limit=limit)

    def log(self):
        return self.lab.log(f"{self.name}.log")

    def files(self):
        return sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))

    def end(self):
        """The machine dies: no process is left."""
        for pid in self.lab.pids(self.name):
            try:
                os.kill(pid, 9)
            except ProcessLookupError:
                pass
        until("the machine is empty", lambda: not self.lab.pids(self.name))

    def reset(self):
        """Whatever a test left: no process, no file."""
        self.stop()
        self.end()
        subprocess.run(["rm", "-rf", self.root], check=True)
        self.root.mkdir()
