"""`make bench-names`: DNS answers of vm-agent and of the real pilot-agent, same queries, same machine, in turn.

What counts is answers per second of the agent's CPU time; the rate depends on how much of the machine is free.
Needs dnsperf. Usage: names.py [RUNS]
"""

import os
import pathlib
import re
import shutil
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tests/istio"))

from lab import Lab, until  # noqa: E402
from pilot import Pilot  # noqa: E402
from vm import Vm  # noqa: E402

RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 5
SECONDS = 5
QUERIES = "details.internal.com A\necho.internal.com A\ncaller.internal.com A\ndetails.internal.com AAAA\n"


def cpu(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(lab, name, pid):
    """Answers per second, and per second of CPU time."""
    queries = lab.directory / "queries"
    queries.write_text(QUERIES)
    before = cpu(pid)
    made = lab.run(name, "dnsperf", "-s", "127.0.0.1", "-p", "15053", "-d", queries, "-l", SECONDS, "-c", "4", "-q", "50")
    spent = cpu(pid) - before
    answered = int(re.search(r"Queries completed:\s+(\d+)", made.stdout).group(1))
    good = re.search(r"Response codes:\s+NOERROR (\d+)", made.stdout)
    if not good or int(good.group(1)) != answered:
        raise SystemExit(made.stdout)
    return answered / SECONDS, answered / spent


def main():
    if not shutil.which("dnsperf"):
        raise SystemExit("dnsperf is needed: install the package dnsperf")
    lab = Lab()
    try:
        lab.up()
        lab.story()
        lab.vm("vm1", "10.99.0.11")
        lab.vm("vm2", "10.99.0.12")
        ours = Vm(lab, "vm1", "10.99.0.11", "client")
        ours.capture = "nftables"
        ours.join().until_ready()
        theirs = Pilot(lab, "vm2", "10.99.0.12", "client", capture=True)
        theirs.join().until_ready()
        known = lambda name: "240.1.2.3" in lab.run(name, "getent", "ahostsv4", "details.internal.com", check=False).stdout
        for name in ("vm1", "vm2"):
            until("the names are known", lambda: known(name))
        peer = next(pid for pid in lab.pids("vm2") if pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "pilot-agent")
        agents = {"vm-agent": ("vm1", ours.status()["pid"]), "pilot-agent": ("vm2", peer)}
        found = {agent: [] for agent in agents}
        for _ in range(RUNS):
            for agent, (name, pid) in agents.items():
                found[agent].append(measure(lab, name, pid))
        for figure, index in (("answers per second", 0), ("answers per CPU second", 1)):
            medians = {agent: statistics.median(one[index] for one in values) for agent, values in found.items()}
            ranges = {agent: f"{medians[agent]:.0f} ({min(v[index] for v in values):.0f}-{max(v[index] for v in values):.0f})" for agent, values in found.items()}
            print(f"{figure:<24} vm-agent {ranges['vm-agent']:<28} pilot-agent {ranges['pilot-agent']:<28} ratio {medians['vm-agent'] / medians['pilot-agent']:.2f}")
    finally:
        lab.down()


if __name__ == "__main__":
    main()
