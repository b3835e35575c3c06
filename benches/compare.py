"""`make bench`: vm-agent beside the real pilot-agent, in turn, on one machine and one control plane.

Absolute figures hold for one run on one machine; the ratios are what counts. Usage: compare.py [RUNS]
"""

import json
import os
import pathlib
import re
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/istio"))

from lab import CONTROL_PLANE, Lab, until  # noqa: E402
from pilot import Pilot  # noqa: E402
from vm import Vm  # noqa: E402

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 7
#: What an idle agent is given to come to rest before its memory is read.
REST = 4.0


def memory(pid):
    """Resident, proportional and anonymous kilobytes of a process."""
    text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    value = lambda name: int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M).group(1))
    return value("Rss"), value("Pss"), value("Anonymous")


class Ours:
    def __init__(self, lab, vm):
        self.lab, self.vm = lab, vm

    def prepare(self):
        self.vm.join().until_ready()
        self.vm.stop()
        # The next start is a first one: it has the configuration and the token, and no certificate.
        (self.vm.root / "var/lib/vm-agent/identity.json").unlink()

    def start(self):
        return self.vm.run().process


def measure(lab, vm, agent):
    """One start: times from exec, then memory at rest."""
    agent.prepare()
    started = time.monotonic()
    process = agent.start()
    times = {}

    def seen():
        if "certificate" not in times:
            shown = lab.run(vm.name, "curl", "-s", "-m", "2", "http://127.0.0.1:15000/certs", check=False).stdout
            if "spiffe://" in shown:
                times["certificate"] = time.monotonic() - started
        if vm.health_page() == 200:
            times.setdefault("ready", time.monotonic() - started)
        return len(times) == 2

    try:
        until("ready with a certificate", seen, limit=60, pause=0.005)
    except AssertionError:
        print(lab.log(f"{vm.name}.log")[-2000:], file=sys.stderr)
        raise
    time.sleep(REST)
    resident, proportional, anonymous = memory(process.pid)
    lab.stop(process)
    vm.reset()
    until("the entry is gone", lambda: not lab.entries(), limit=60, pause=0.3)
    return {"certificate in Envoy, ms": times["certificate"] * 1000, "ready, ms": times["ready"] * 1000,
            "agent RSS, MB": resident / 1024, "agent PSS, MB": proportional / 1024, "agent anonymous, MB": anonymous / 1024}


def own_certificate(lab, vm):
    """From the agent's own clock: start to first certificate, and to ready."""
    vm.join().until_ready()
    timings = vm.status()["timings"]
    vm.stop()
    vm.reset()
    until("the entry is gone", lambda: not lab.entries(), limit=60, pause=0.3)
    return timings


def main():
    lab = Lab()
    try:
        lab.up()
        lab.story()
        # pilot-agent has to resolve istiod's name.
        lab.vm("vm1", "10.99.0.11", hosts=f"{CONTROL_PLANE} istiod.istio-system.svc\n")
        vm = Vm(lab, "vm1", "10.99.0.11", "client")
        agents = {
            "vm-agent": Ours(lab, vm),
            "pilot-agent": Pilot(lab, vm.name, vm.ip, vm.group),
            "pilot-agent, ECDSA": Pilot(lab, vm.name, vm.ip, vm.group, "ECC_SIGNATURE_ALGORITHM=ECDSA"),
        }
        found = {name: [] for name in agents}
        for number in range(RUNS):
            for name, agent in agents.items():
                found[name].append(measure(lab, vm, agent))
            print(f"run {number + 1} of {RUNS}", file=sys.stderr)
        print(f"{'median (min-max), n = ' + str(RUNS):<28}" + "".join(f"{name:>26}" for name in agents) + f"{'ratio to ECDSA':>18}")
        for figure in found["vm-agent"][0]:
            row, medians = "", {}
            for name in agents:
                values = [one[figure] for one in found[name]]
                medians[name] = statistics.median(values)
                row += f"{f'{medians[name]:.1f} ({min(values):.1f}-{max(values):.1f})':>26}"
            print(f"{figure:<28}{row}{medians['vm-agent'] / medians['pilot-agent, ECDSA']:>18.2f}")
        own = [own_certificate(lab, vm) for _ in range(RUNS)]
        for name in ("certificate_ms", "registered_ms", "proxy_ready_ms", "ready_ms"):
            values = [one[name] for one in own]
            print(f"vm-agent's own clock: {name:<16} {statistics.median(values):.0f} ({min(values)}-{max(values)})")
        print(json.dumps({"binary_bytes": os.path.getsize(vm.join_command()[0])}))
    finally:
        lab.down()


if __name__ == "__main__":
    main()
