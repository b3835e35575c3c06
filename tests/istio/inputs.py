"""Join directories as users really have them, beside what Istio's own agent does with the same files."""

import json
import shutil
import sys

from case import LAB, Traffic
from lab import BIN, CONTROL_PLANE, until

#: A program that the mesh knows nothing of.
PORT = 7777
#: What is taken out of cluster.env for a file of an old version.
LISTS = ("ISTIO_INBOUND_PORTS", "ISTIO_LOCAL_EXCLUDE_PORTS")
WHITEBOX = """
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: whitebox, namespace: vms}
spec:
  workloadSelector: {labels: {app: client}}
  ingress: [{port: {number: 19080, name: http, protocol: HTTP}, defaultEndpoint: "127.0.0.1:9080"}]
  egress: [{bind: 127.0.0.1, captureMode: NONE, port: {number: 8888, name: http, protocol: HTTP}, hosts: ["./*"]}]
"""


class Inputs(Traffic):
    def source(self, *lines, without=(), group="client", autoregister=True):
        """The join directory of a group with further lines of cluster.env, and without some."""
        copy = LAB.directory / f"input-{group}"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(LAB.join_directory(group), copy)
        gone = tuple(without) + (() if autoregister else ("ISTIO_META_AUTO_REGISTER_GROUP",))
        kept = [line for line in (copy / "cluster.env").read_text().splitlines() if not line.startswith(gone)] if gone else (
            (copy / "cluster.env").read_text().splitlines())
        (copy / "cluster.env").write_text("\n".join([*kept, *lines]) + "\n")
        if not autoregister:
            mesh = (copy / "mesh.yaml").read_text().splitlines()
            (copy / "mesh.yaml").write_text("\n".join(line for line in mesh if "AUTO_REGISTER_GROUP" not in line) + "\n")
        return copy

    def listen(self, name, port=PORT):
        """A plain program on a machine."""
        process = LAB.start(name, sys.executable, "-m", "http.server", str(port), log=f"plain-{name}.log")
        self.addCleanup((LAB.directory / f"plain-{name}.log").unlink, missing_ok=True)
        self.addCleanup(LAB.stop, process)
        until("it listens", lambda: LAB.run(name, "curl", "-s", "-o", "/dev/null", f"127.0.0.1:{port}", check=False).returncode == 0)

    def outside(self, vm):
        """What somebody outside of the mesh gets of the plain program."""
        return LAB.run("cp", "curl", "-s", "-o", "/dev/null", "-m", "5", "-w", "%{http_code}", f"http://{vm.ip}:{PORT}/", check=False).stdout

    def istios_rules(self, vm, source):
        """The rules that Istio's script makes of a directory: by the environment alone, without arguments."""
        if not (LAB.directory / "pilot-agent").exists():
            shutil.copy(BIN / "pilot-agent", LAB.directory / "pilot-agent")
        LAB.run(vm.name, "bash", "-c", f"set -a; . {source}/cluster.env; set +a; exec {LAB.directory}/pilot-agent istio-iptables")

    def test_without_ports_nothing_inbound_is_redirected_as_with_istios_script(self):
        self.listen("vm2")
        cases = {"all": lambda: self.source("ISTIO_INBOUND_PORTS='*'"),
                 "empty": lambda: self.source("ISTIO_INBOUND_PORTS=''"), "absent": lambda: self.source(without=LISTS)}
        seen = {}
        for case, source in cases.items():
            directory = source()
            # A machine that is reset has no programs.
            self.listen("vm1")
            self.vm1.join(source=directory).until_ready()
            self.istios_rules(self.vm2, directory)
            seen[case] = (self.outside(self.vm1), self.outside(self.vm2))
            self.vm1.reset()
            for vm in (self.vm1, self.vm2):
                LAB.forget_rules(vm.name)
        self.assertEqual(seen, {"all": ("000", "000"), "empty": ("200", "200"), "absent": ("200", "200")})

    def test_own_rules_are_left_to_the_operator(self):
        LAB.apply(WHITEBOX)
        self.addCleanup(LAB.kubectl, "-n", "vms", "delete", "sidecar", "whitebox")
        process = LAB.start("cp", sys.executable, "-m", "http.server", "8099", "--bind", CONTROL_PLANE, log="plain-cp.log")
        self.addCleanup((LAB.directory / "plain-cp.log").unlink, missing_ok=True)
        self.addCleanup(LAB.stop, process)
        self.serve("vm1")
        command = self.vm1.join_command(source=self.source("ISTIO_CUSTOM_IP_TABLES=true", "ISTIO_META_INTERCEPTION_MODE=NONE"))
        at = command.index("--capture")
        # What the directory says of rules counts; a root of its own would have none in any case.
        command[at:at + 2] = ["--set", "capture.failPolicy=open"]
        self.vm1.process = LAB.start("vm1", *command, log="vm1.log")
        self.vm1.until_ready()
        config = json.loads(self.vm1.command("config", "show", "--json").stdout)
        modes = [one for one in config["settings"] if one["setting"] == "capture.mode"]
        self.assertEqual([(one["value"], one["origin"] == "default") for one in modes], [("none", False)], "the directory says so")
        self.assertNotIn("vm_agent", LAB.run("vm1", "nft", "list", "ruleset").stdout)
        self.assertEqual(LAB.curl("vm1", f"http://{CONTROL_PLANE}:8099/")[0], 200)

    def test_an_unprivileged_proxy_listens_at_no_privileged_port(self):
        self.vm1.capture = "none"
        self.vm1.join(source=self.source("ISTIO_META_INTERCEPTION_MODE=NONE")).until_ready()
        # Envoy's rejection of a listener would stay.
        until("nothing is wrong", lambda: self.vm1.status()["conditions"] == [])

    def test_a_machine_that_nobody_registers_serves_under_a_hand_made_entry(self):
        entry = {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "by-hand", "namespace": "vms"},
                 "spec": {"address": self.vm2.ip, "labels": {"app": "details-legacy"}, "serviceAccount": "details-legacy"}}
        LAB.apply(json.dumps(entry))
        self.addCleanup(LAB.kubectl, "-n", "vms", "delete", "workloadentry", "by-hand")
        self.serve("vm2")
        self.vm1.join()
        self.vm2.join(source=self.source(group="details-legacy", autoregister=False))
        for vm in (self.vm1, self.vm2):
            status = vm.until_ready()
        self.assertEqual((status["registration"]["mode"], status["registration"]["phase"]), ("none", "off"))
        self.assertIn("its WorkloadEntry has to be made by hand", self.vm2.log())
        until("it is called by its name", lambda: LAB.curl("vm1", "http://details.internal.com/")[0] == 200, limit=90)
        self.assertEqual([name for name in LAB.entries() if "details" in name], [], "nobody registered it")
