"""Forty things that go wrong on a machine, one by one on a booted VM, and what `vm-agent doctor` names first.

`tests/doctor/faults.rs` has those that need no machine; here are the ones that a person does to a real system: its disk, its
network, its clock, its units, its cluster.
"""

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys

from bed import LAB, joined, status, until, until_ready
from case import Case

CONFIG, STATE, ENVOY = "/etc/vm-agent/config.yaml", "/var/lib/vm-agent", "/usr/local/bin/envoy"


@dataclasses.dataclass(frozen=True)
class Fault:
    name: str
    #: The check that has to be first, and what its cause has to say.
    first: str
    words: str
    #: A script for the machine, or something to do from outside.
    inject: object
    #: What undoes it, beyond the machine's files, which are put back in any case.
    mend: object = ""
    #: What the doctor is started with.
    under: tuple = ()


def setting(path, value):
    """The command that changes a setting in the configuration."""
    return f"python3 /root/setting.py {path} {shlex.quote(json.dumps(value))}"


def listener(port):
    """Somebody else on a port, until its unit is stopped."""
    server = f"import socket,time; s=socket.socket(); s.setsockopt(1,2,1); s.bind(('127.0.0.1',{port})); s.listen(); time.sleep(600)"
    return (f"systemd-run --quiet --unit=taken python3 -c {shlex.quote(server)}; until ss -ltn | grep -q :{port}; do :; done", "systemctl stop taken")


def drop_in(text):
    """Something else in the service's unit."""
    directory = "/run/systemd/system/vm-agent.service.d"
    return f"mkdir -p {directory}; printf '[Service]\\n{text}\\n' > {directory}/fault.conf; systemctl daemon-reload"


NO_DROP_IN = "rm -r /run/systemd/system/vm-agent.service.d; systemctl daemon-reload"


def firewall(rule):
    """A rule of somebody's firewall."""
    return (f"nft 'table inet firewall {{ chain out {{ type filter hook output priority 0; {rule}; }}; }}'", "nft delete table inet firewall")


def cluster(*args):
    return lambda _: LAB.kubectl("-n", "vms", *args)


def apply(what):
    return lambda _: LAB.apply(json.dumps(what))


def kept(kind, name):
    """An object as it is, without what belongs to this one only."""
    found = json.loads(LAB.kubectl("-n", "vms", "get", kind, name, "-o", "json").stdout)
    found["metadata"] = {key: found["metadata"][key] for key in ("name", "namespace", "labels", "annotations") if key in found["metadata"]}
    found.pop("status", None)
    return found


def signalled(vm, name):
    """A signal for Envoy."""
    vm.exec("kill", f"-{name}", vm.exec("pgrep", "-x", "envoy").stdout.split()[0])


def is_healthy(vm):
    """Whether istiod holds the machine for healthy."""
    conditions = LAB.entries()[vm.name].get("status", {}).get("conditions", [])
    return [one["status"] for one in conditions if one["type"] == "Healthy"] == ["True"]


def until_said(vm, words):
    """Until the agent has noticed."""
    until(f"the agent says that {words}", lambda: words in json.dumps(status(vm)), limit=60, pause=0.2)


def istiod(number):
    return lambda _: os.kill(LAB.istiod_process.pid, number)


# A token that says something else than it said; nobody but istiod can tell that it is not signed any more.
OTHER_CLAIMS = """
import base64, json, sys
file, claims = sys.argv[1], json.loads(sys.argv[2])
head, body, signature = open(file).read().strip().split(".")
body = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))) | claims
open(file, "w").write(".".join([head, base64.urlsafe_b64encode(json.dumps(body).encode()).decode().rstrip("="), signature]))
"""
SETTING = """
import json, sys, yaml
path, value = sys.argv[1].split("."), json.loads(sys.argv[2])
with open("/etc/vm-agent/config.yaml") as file:
    tree = yaml.safe_load(file)
section = tree
for name in path[:-1]:
    section = section.setdefault(name, {})
section.pop(path[-1], None)
if value is not None:
    section[path[-1]] = value
with open("/etc/vm-agent/config.yaml", "w") as file:
    yaml.safe_dump(tree, file)
"""
#: Without a certificate, a source of tokens to ask, and the Kubernetes API: what is left is the token in the file.
ONLY_TOKEN = "; ".join([f"rm -f {STATE}/identity.json {STATE}/istio-token.json", setting("registration", {"mode": "istiod"})])
A_STRANGERS_ROOT = f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout /dev/null -days 30 -subj /O=stranger -out"
AS_IT_WAS = f"find /etc/vm-agent {STATE} -mindepth 1 -delete; cp -a /root/good/config/. /etc/vm-agent; cp -a /root/good/state/. {STATE}"


def claims(**changed):
    return f"python3 /root/claims.py {STATE}/istio-token {shlex.quote(json.dumps(changed))}"


#: The machine has joined, and its agent is stopped.
STOPPED = [
    Fault("no configuration", "configuration", "No such file", f"rm {CONFIG}"),
    Fault("broken YAML", "configuration", "no valid YAML", f"printf 'workload: {{namespace: x\\n' > {CONFIG}"),
    Fault("an unknown setting", "configuration", "wrokload", setting("wrokload", {"name": "vm1"})),
    Fault("a wrong value", "configuration", "identity.ttl", setting("identity.ttl", "5 parsecs")),
    Fault("a full disk", "disk", "No space left",
          lambda vm: (vm.exec("touch", "/var/filler"), vm.shrink(), vm.exec("dd", "if=/dev/zero", "of=/var/filler", "bs=4k", check=False)),
          lambda vm: (vm.resize(), vm.exec("rm", "/var/filler"))),
    Fault("a disk that became read-only", "disk", "Read-only", f"mount --bind {STATE} {STATE}; mount -o remount,bind,ro {STATE}", f"umount {STATE}"),
    Fault("a file in place of the state directory", "disk", "Not a directory", f"rm -r {STATE}; touch {STATE}", f"rm -f {STATE}; mkdir -m 700 {STATE}"),
    Fault("the network is down", "address", "eth0 is", "ip link set eth0 down",
          "systemctl restart systemd-networkd; until ip route get 10.99.0.1 >/dev/null 2>&1; do :; done"),
    Fault("a template that nothing fills", "address", "cloud.zone is not known", setting("workload.locality", "eu/{{cloud.zone}}")),
    Fault("another program has the status port", "ports", "the agent's status server", *listener(15020)),
    Fault("another program has Envoy's admin port", "ports", "Envoy's admin interface", *listener(15000)),
    Fault("resolv.conf names nobody", "dns", "does not resolve", "cp -P /etc/resolv.conf /root/; rm /etc/resolv.conf; echo 'nameserver 127.0.0.9' > /etc/resolv.conf",
          "cp -P --remove-destination /root/resolv.conf /etc/resolv.conf"),
    Fault("the host's resolver is stopped", "dns", "does not resolve", "systemctl stop systemd-resolved", "systemctl start systemd-resolved"),
    Fault("a firewall refuses istiod's port", "tcp", "cannot connect", *firewall("tcp dport 15012 reject with tcp reset")),
    Fault("a firewall swallows istiod's port", "tcp", "", *firewall("tcp dport 15012 drop")),
    Fault("istiod hangs", "tls", "did not answer", istiod(signal.SIGSTOP), istiod(signal.SIGCONT)),
    Fault("a root of another mesh", "root", "is not signed by a root", f"{A_STRANGERS_ROOT} /etc/vm-agent/root-cert.pem 2>/dev/null"),
    Fault("no root file", "root", "No such file", "rm /etc/vm-agent/root-cert.pem"),
    Fault("another name than istiod's certificate has", "server-name", "istiod.elsewhere.svc", setting("mesh.serverName", "istiod.elsewhere.svc")),
    Fault("the clock is an hour behind", "clock", "behind", "", under=("faketime", "-f", "-1h")),
    Fault("the clock is two days ahead", "clock", "ahead", "", under=("faketime", "-f", "+2d")),
    Fault("the clock is years ahead", "clock", "expired at", "", under=("faketime", "-f", "+12y")),
    Fault("no token", "token", "No such file", f"{ONLY_TOKEN}; rm {STATE}/istio-token"),
    Fault("an expired token", "token", "expired at", f"{ONLY_TOKEN}; {claims(exp=1700000000, iat=1699990000, nbf=1699990000)}"),
    Fault("a token that is none", "token", "not a JSON Web Token", f"{ONLY_TOKEN}; echo rubbish > {STATE}/istio-token"),
    Fault("a token for somebody else", "token", "is for audience vault", f"{ONLY_TOKEN}; {claims(aud=['vault'])}"),
    Fault("another account's token", "account", "vms/client, not for vms/details-legacy",
          lambda vm: (vm.shell(ONLY_TOKEN), vm.exec("tee", f"{STATE}/istio-token", input=LAB.token("client", "istio-ca")))),
    Fault("a garbled token for the Kubernetes API", "kubernetes", "Unauthorized", f"python3 -c \"t=open('{STATE}/kube-token').read(); open('{STATE}/kube-token','w').write(t[:-20]+'A'*20)\""),
    Fault("another CA for the Kubernetes API", "kubernetes", "invalid peer certificate", f"{A_STRANGERS_ROOT} /etc/vm-agent/kube-ca.pem 2>/dev/null"),
    Fault("a firewall refuses the Kubernetes API", "kubernetes", "", *firewall("tcp dport 6443 reject with tcp reset")),
    Fault("Envoy is removed", "proxy", "no Envoy found", f"mv {ENVOY} {ENVOY}.away", f"mv {ENVOY}.away {ENVOY}"),
    Fault("Envoy may not be executed", "proxy", "not executable", f"chmod -x {ENVOY}", f"chmod +x {ENVOY}"),
    Fault("something else than Envoy", "proxy", "not what Envoy says", f"mv {ENVOY} {ENVOY}.away; printf '#!/bin/sh\\necho hello\\n' > {ENVOY}; chmod +x {ENVOY}", f"mv {ENVOY}.away {ENVOY}"),
    Fault("no user for the proxy", "user", "", setting("proxy.user", "nobody-made-it")),
]

#: The same, and what is wrong is in the cluster.
CLUSTER = [
    Fault("a deleted RoleBinding", "rights", "Forbidden",
          cluster("delete", "rolebinding", "vm-agent-details-legacy", "vm-agent-details"),
          lambda _: [LAB.apply(json.dumps(KEPT["rolebinding", name])) for name in ("vm-agent-details-legacy", "vm-agent-details")]),
    Fault("a deleted WorkloadGroup", "group", "there is no workloadgroups", cluster("delete", "workloadgroup", "details-legacy"),
          lambda _: LAB.apply(json.dumps(KEPT["workloadgroup", "details-legacy"]))),
    Fault("a WorkloadGroup of another account", "group", "for service account",
          cluster("patch", "workloadgroup", "details-legacy", "--type=merge", "-p", '{"spec":{"template":{"serviceAccount":"client"}}}'),
          lambda _: LAB.apply(json.dumps(KEPT["workloadgroup", "details-legacy"]))),
    Fault("another machine has taken the entry", "entry", "belongs to another machine",
          lambda vm: LAB.kubectl("-n", "vms", "annotate", "workloadentry", vm.name, "vm-agent.io/machine=another", "--overwrite"),
          lambda vm: LAB.kubectl("-n", "vms", "annotate", "workloadentry", vm.name, f"vm-agent.io/machine={KEPT['machine']}", "--overwrite")),
]
#: The service of a machine that has joined is not as it should be.
UNIT = [
    Fault("the service is disabled", "unit", "not enabled", "systemctl --quiet disable vm-agent", "systemctl --quiet enable vm-agent"),
    Fault("the service is masked", "unit", "masked", "systemctl --quiet mask --runtime vm-agent", "systemctl --quiet unmask --runtime vm-agent"),
    Fault("the package is gone", "unit", "", "mv /lib/systemd/system/vm-agent.service /root/; systemctl daemon-reload",
          "mv /root/vm-agent.service /lib/systemd/system/; systemctl daemon-reload"),
    Fault("the service ends at once", "unit", "failed",
          drop_in("ExecStart=\nExecStart=/usr/bin/vm-agent run --set status.port=0x\nExecStopPost=") + "; systemctl start vm-agent || true; sleep 1",
          f"{NO_DROP_IN}; systemctl reset-failed vm-agent"),
]
#: The machine is in the mesh, and its agent runs.
RUNNING = [
    Fault("the configuration got broken meanwhile", "configuration", "no valid YAML", f"printf 'workload: {{namespace: x\n' > {CONFIG}"),
    Fault("the agent is frozen", "daemon", "does not answer", "systemctl service-watchdogs no; systemctl kill --kill-whom=main --signal=STOP vm-agent",
          "systemctl kill --kill-whom=main --signal=CONT vm-agent; systemctl service-watchdogs yes"),
    Fault("Envoy is frozen", "proxy-process", "does not answer", lambda vm: (signalled(vm, "STOP"), until_said(vm, "the proxy's admin interface does not answer")),
          lambda vm: (signalled(vm, "CONT"), until("istiod holds it for healthy", lambda: is_healthy(vm), pause=0.1))),
    Fault("somebody flushes the firewall all the time", "capture", "somebody else",
          lambda vm: (vm.exec("systemd-run", "--quiet", "--unit=flusher", "sh", "-c", "while :; do nft flush ruleset; done"), until_said(vm, "somebody else removed or changed the redirect rules")),
          "systemctl stop flusher"),
    Fault("a firewall swallows the agent's DNS", "names", "does not answer",
          "nft 'table inet firewall { chain in { type filter hook input priority 0; udp dport 15053 drop; }; }'", "nft delete table inet firewall"),
]
KEPT = {}


class Doctor(Case):
    @classmethod
    def setUpClass(cls):
        cls.vm = joined("web3", "details-legacy")
        for kind, name in (("rolebinding", "vm-agent-details-legacy"), ("rolebinding", "vm-agent-details"), ("workloadgroup", "details-legacy")):
            KEPT[kind, name] = kept(kind, name)
        KEPT["machine"] = LAB.entries()["web3"]["metadata"]["annotations"]["vm-agent.io/machine"]
        for name, text in (("setting.py", SETTING), ("claims.py", OTHER_CLAIMS)):
            cls.vm.exec("tee", f"/root/{name}", input=text)
        cls.vm.shell(f"systemctl stop vm-agent; mkdir -p /root/good; cp -a /etc/vm-agent /root/good/config; cp -a {STATE} /root/good/state")

    def do(self, what):
        if callable(what):
            what(self.vm)
        elif what:
            self.vm.shell(what)

    def examine(self, fault):
        """Injects it, asks the doctor, and mends it; says what was wrong with the answer."""
        with contextlib.ExitStack() as stack:
            stack.callback(self.do, AS_IT_WAS)
            stack.callback(self.do, fault.mend)
            self.do(fault.inject)
            made = self.vm.exec(*fault.under, "vm-agent", "doctor", "--json", check=False)
        if not made.stdout:
            return f"no report: {made.stderr}"
        report = json.loads(made.stdout)
        first = report["first"]
        finding = next((one for one in report["findings"] if one["id"] == first), {})
        told = f"{first}: {finding.get('cause')} (mend: {finding.get('mend')})"
        print(f"  {fault.name:<46}{told.splitlines()[0][:140]}", file=sys.stderr, flush=True)
        return "" if first == fault.first and fault.words in told and finding.get("mend") else f"{fault.name}: {told}"

    def test_forty_faults_are_named_first(self):
        self.assertGreaterEqual(len(STOPPED + CLUSTER + UNIT + RUNNING), 40)
        print(file=sys.stderr)
        wrong = [self.examine(fault) for fault in STOPPED + CLUSTER + UNIT]
        self.vm.exec("systemctl", "start", "vm-agent")
        for fault in RUNNING:
            until_ready(self.vm)
            wrong.append(self.examine(fault))
        until_ready(self.vm)
        self.assertEqual([told for told in wrong if told], [])
