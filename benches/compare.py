"""vm-agent beside the real pilot-agent: memory, and the time from the start to the first certificate and to ready.

Run it with `make bench`; ARGS=10 changes the number of runs of each, SETTLE=30 the seconds of idling. All take turns on
one control plane with the same Envoy binary and without redirect rules, each in a directory of its own, and one ends
before the next starts. Nothing is asserted: the figures are for comparing, on one machine at one time.

 - first certificate: the certificate's file is there (pilot-agent: OUTPUT_CERTS; vm-agent: identity.exportDirectory)
 - ready: Envoy's health page on 15021 answers 200
 - memory: of the agent's own process, once it has been joined and idle for SETTLE seconds
 - pilot-agent gets its best case: no probing for a cloud, no DNS
 - CPU: what the agent's own process used from its start to ready
"""

import http.client
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests/istio"))

from lab import BIN, PEERS, Lab, until  # noqa: E402
from vm import AGENT, ENVOY  # noqa: E402

RUNS = int(sys.argv[1]) if sys.argv[1:2] and sys.argv[1].isdigit() else 7
SETTLE = float(os.environ.get("SETTLE", "5"))
IP, GROUP, PROXY_UID = "10.99.0.11", "client", 1337
TICKS = os.sysconf("SC_CLK_TCK")


def environment_of(path):
    """The variables of istioctl's cluster.env: lines of NAME='value'."""
    pairs = (line.split("=", 1) for line in path.read_text().splitlines() if "=" in line)
    return {name: value[1:-1] if value[:1] == "'" else value for name, value in pairs}


class PilotAgent:
    """Set up as Istio's package for VMs does it, in a directory of its own."""

    def __init__(self, label, **settings):
        self.name, self.settings = label, settings

    def prepare(self, lab, directory):
        source = lab.join_directory(GROUP)
        for sub in ("etc/istio/proxy", "etc/istio/config", "etc/certs", "var/run/secrets/tokens", "var/lib/istio/envoy"):
            (directory / sub).mkdir(parents=True)
        for name, target in (("root-cert.pem", "etc/certs/root-cert.pem"), ("istio-token", "var/run/secrets/tokens/istio-token"),
                             ("mesh.yaml", "etc/istio/config/mesh")):
            shutil.copy(source / name, directory / target)
        shutil.copy(PEERS / "envoy_bootstrap_tmpl.json", directory / "var/lib/istio/envoy/envoy_bootstrap_tmpl.json")
        for path in (directory, *directory.rglob("*")):
            os.chown(path, PROXY_UID, PROXY_UID)
        environment = {
            "PATH": os.environ["PATH"], "PROV_CERT": "./etc/certs", "OUTPUT_CERTS": "./etc/certs", "INSTANCE_IP": IP,
            "POD_NAME": "vm1", "ISTIO_META_INSTANCE_IPS": IP, "CA_ADDR": "istiod.istio-system.svc:15012",
            **environment_of(source / "cluster.env"), "ISTIO_META_DNS_CAPTURE": "false", "CLOUD_PLATFORM": "none", **self.settings}
        binaries = lab.directory / "bin"   # where another user may run them
        command = ["setpriv", "--reuid", PROXY_UID, "--regid", PROXY_UID, "--clear-groups", binaries / "pilot-agent", "proxy",
                   "--templateFile", "var/lib/istio/envoy/envoy_bootstrap_tmpl.json", "--binaryPath", binaries / "envoy"]
        return command, environment, directory / "etc/certs/cert-chain.pem"


class Join:
    """`vm-agent join --foreground` into an empty root: all checks, then the daemon."""

    name = "vm-agent join"

    def prepare(self, lab, directory):
        exported = directory / "exported"
        command = [AGENT, "join", lab.join_directory(GROUP), "--root", directory, "--foreground", "--name", "vm1", "--address", IP,
                   "--proxy-binary", ENVOY, "--capture", "none", "--set", f"identity.exportDirectory={exported}"]
        return command, dict(os.environ), exported / "cert-chain.pem"


class Run:
    """`vm-agent run`, as the service unit starts it, on a machine that was set up and has no certificate yet."""

    name = "vm-agent run"

    def __init__(self):
        self.root = None

    def prepare(self, lab, directory):
        exported = lab.directory / "bench-root/exported"
        if self.root is None:
            self.root = lab.directory / "bench-root"
            self.root.mkdir()
            command, environment, _ = Join().prepare(lab, self.root)
            joined = lab.start("vm1", *command, log="bench-join.log", environment=environment)
            status = [AGENT, "--root", self.root, "wait", "--for", "ready", "--timeout", "30s"]
            until("the machine has joined", lambda: lab.run("vm1", *status, check=False).returncode == 0)
            lab.stop(joined)
            until("istiod has removed the entry", lambda: not lab.entries(), pause=0.2)
        (self.root / "var/lib/vm-agent/identity.json").unlink()
        shutil.rmtree(exported)
        return [AGENT, "--root", self.root, "run"], dict(os.environ), exported / "cert-chain.pem"


def health():
    connection = http.client.HTTPConnection("127.0.0.1", 15021, timeout=2)
    try:
        connection.request("GET", "/healthz/ready")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def watch(certificate, limit=60):
    """Runs inside the VM's namespace: says when the certificate is there and when Envoy is ready (clock: CLOCK_MONOTONIC)."""
    seen, end = {}, time.monotonic() + limit
    while time.monotonic() < end and len(seen) < 2:
        if "certificate" not in seen and os.path.exists(certificate):
            seen["certificate"] = time.monotonic()
        try:
            if "ready" not in seen and health():
                seen["ready"] = time.monotonic()
        except OSError:
            pass
        time.sleep(0.002)
    print(json.dumps(seen))


def memory(pid):
    """Megabytes: resident, its share of what it shares, and its own alone."""
    rows = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {f"agent {label}, MB": int(rows[field].split()[0]) / 1024 for field, label in (("Rss", "RSS"), ("Pss", "PSS"), ("Anonymous", "anonymous"))}


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / TICKS


def measure(lab, agent, number):
    directory = lab.directory / f"bench-{number}"
    directory.mkdir()
    command, environment, certificate = agent.prepare(lab, directory)
    watcher = subprocess.Popen(["ip", "netns", "exec", lab.namespace("vm1"), sys.executable, __file__, "--watch", certificate],
                               stdout=subprocess.PIPE, text=True)
    lab.processes.append(watcher)
    begin = time.monotonic()
    process = lab.start("vm1", *command, log=f"{directory.name}.log", environment=environment, cwd=directory)
    try:
        seen = json.loads(watcher.communicate(timeout=90)[0])
        used = cpu(process.pid)
        if len(seen) < 2:
            raise SystemExit(f"{agent.name} was not ready in time:\n{lab.log(directory.name + '.log')[-3000:]}")
        time.sleep(SETTLE)
        rest = memory(process.pid)
    finally:
        lab.stop(process, limit=60)
        for pid in lab.pids("vm1"):
            os.kill(pid, signal.SIGKILL)
        until("the machine is empty", lambda: not lab.pids("vm1"))
        until("istiod has removed the entry", lambda: not lab.entries(), pause=0.2)
    shutil.rmtree(directory)
    return {"first certificate, ms": (seen["certificate"] - begin) * 1000, "ready, ms": (seen["ready"] - begin) * 1000,
            "agent CPU to ready, ms": used, **rest}


def table(agents, results):
    names, peers = [agent.name for agent in agents], [agent.name for agent in agents if isinstance(agent, PilotAgent)]
    rows = [["median (min - max)", *names, *(f"run to {name}" for name in peers)]]
    for figure in results[names[0]][0]:
        medians, row = {}, [figure]
        for name in names:
            values = [result[figure] for result in results[name]]
            medians[name] = statistics.median(values)
            row.append(f"{medians[name]:.1f} ({min(values):.1f} - {max(values):.1f})")
        row += [f"{medians[Run.name] / medians[peer]:.2f}" if medians[peer] else "-" for peer in peers]
        rows.append(row)
    sizes = {agent.name: ((BIN / "pilot-agent") if isinstance(agent, PilotAgent) else AGENT).stat().st_size for agent in agents}
    rows.append(["binary, MB", *(f"{sizes[name] / 1e6:.1f}" for name in names), *(f"{sizes[Run.name] / sizes[peer]:.2f}" for peer in peers)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in (
        rows[0], ["-" * width for width in widths], *rows[1:]))


def main():
    # The lab is taken down when the program ends; without this a SIGTERM would end it before that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not AGENT.exists():
        raise SystemExit(f"{AGENT} is missing: run `make build`")
    agents = [Run(), Join(), PilotAgent("pilot-agent"), PilotAgent("pilot-agent, ECDSA", ECC_SIGNATURE_ALGORITHM="ECDSA")]
    results = {agent.name: [] for agent in agents}
    lab = Lab()
    try:
        lab.up()
        lab.story()
        lab.vm("vm1", IP)
        (lab.directory / "bin").mkdir()
        for name in ("pilot-agent", "envoy"):
            shutil.copy(BIN / name, lab.directory / "bin" / name)
        # pilot-agent resolves istiod's name; Istio has the operator add this file of istioctl's to the machine's own.
        with open(f"/etc/netns/{lab.namespace('vm1')}/hosts", "a", encoding="utf-8") as hosts:
            hosts.write((lab.join_directory(GROUP) / "hosts").read_text())
        for run in range(RUNS + 1):
            for agent in agents:
                result = measure(lab, agent, f"{agent.name.replace(', ', '-').replace(' ', '-')}-{run}")
                warm = "" if run else "  (warm-up, not counted)"
                print(f"run {run} {agent.name}: {', '.join(f'{name} {value:.1f}' for name, value in result.items())}{warm}", flush=True)
                if run:
                    results[agent.name].append(result)
    finally:
        lab.down()
    print(f"\n{RUNS} runs of each in turn, {os.cpu_count()} processors, Linux {platform.release()}, load {os.getloadavg()[0]:.1f}\n")
    print(table(agents, results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--watch"]:
        watch(sys.argv[2])
    else:
        main()
