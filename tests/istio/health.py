"""Health: who cannot serve is left out, and comes back; who leaves says so first."""

import contextlib
import json
import os
import signal

from case import LAB, Load, Traffic, answers, on_both
from lab import CONTROL_PLANE, until
from vm import Vm

PROBE = "health.probe={httpGet: {path: /health, port: 9080}, periodSeconds: 1}"

#: How often a machine leaves and comes back: what others hear of it races with what its Envoy hears.
RETURNS = int(os.environ.get("VM_AGENT_RETURNS", "5"))


class Health(Traffic):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")
        self.vm3 = Vm(LAB, "vm3", "10.99.0.13", "details-legacy")
        self.vm3.capture = "nftables"
        self.addCleanup(LAB.forget_rules, "vm3")
        self.addCleanup(self.vm3.reset)

    def by_kubernetes(self):
        """Flags for the machine's own hand on its entry."""
        path = LAB.directory / "kube-token"
        path.write_text(LAB.token("details-legacy", "https://kubernetes.default.svc"))
        return ["--registration", "kubernetes", "--kube-server", f"https://{CONTROL_PLANE}:6443", "--kube-ca", LAB.server_ca, "--kube-token-file", path,
                "--label", "app=details-legacy"]

    def endpoints(self):
        """Where vm1's Envoy sends requests for the service."""
        lines = self.vm1.admin("/clusters").splitlines()
        return {line.split("::")[1].split(":")[0] for line in lines if line.startswith("outbound|80||details.internal.com::10.")}

    def sick_and_well(self, flags):
        files = self.serve("vm2")
        self.vm1.join().until_ready()
        self.vm2.join("--set", PROBE, *flags).until_ready()
        until("the machine is an endpoint", lambda: self.endpoints() == {"10.99.0.12"}, limit=60)
        (files / "sick").touch()
        until("the sick machine is left out", lambda: self.endpoints() == set(), limit=60)
        health = self.vm2.status()["health"]
        self.assertIn("HTTP 503: sick", health["health"]["message"])
        self.assertIn("HTTP 503: sick", self.vm2.command("status").stdout)
        (files / "sick").unlink()
        until("the well machine is back", lambda: self.endpoints() == {"10.99.0.12"}, limit=60)
        until("and serves with its policy", lambda: LAB.curl("vm1", "http://details.internal.com/")[0] == 200, limit=60)
        self.assertEqual(LAB.curl("vm1", "http://details.internal.com/secret")[0], 403)
        # No goodbye: everything of the machine dies at once.
        for pid in LAB.pids("vm2"):
            os.kill(pid, signal.SIGKILL)
        self.vm2.process.wait()
        until("the dead machine is left out", lambda: self.endpoints() == set(), limit=60)

    @on_both
    def test_a_failing_probe_and_a_death_take_the_machine_out_where_istiod_registers(self):
        self.sick_and_well([])

    @on_both
    def test_a_failing_probe_and_a_death_take_the_machine_out_where_it_registers_itself(self):
        self.sick_and_well(self.by_kubernetes())
        # Nobody else may remove the entry; its machine comes back to it.
        self.assertIn("vm2", LAB.entries())
        self.serve("vm2")
        self.vm2.run().until_ready()
        until("the machine is an endpoint again", lambda: self.endpoints() == {"10.99.0.12"}, limit=60)

    @on_both
    def test_the_probe_of_the_workload_group_is_used(self):
        LAB.kubectl("-n", "vms", "patch", "workloadgroup", "details-legacy", "--type=merge", "-p",
                    json.dumps({"spec": {"probe": {"httpGet": {"path": "/health", "port": 9080}, "periodSeconds": 1}}}))
        self.addCleanup(LAB.configure, "details-legacy")
        self.addCleanup(LAB.kubectl, "-n", "vms", "patch", "workloadgroup", "details-legacy", "--type=json", "-p", '[{"op": "remove", "path": "/spec/probe"}]')
        source = LAB.configure("details-legacy", directory=LAB.directory / "join-probed")
        files = self.serve("vm2")
        (files / "sick").touch()
        self.vm2.join(source=source)
        until("the application is found sick", lambda: self.vm2.status().get("health", {}).get("health", {}).get("is") == "unhealthy")
        self.assertIn("GET http://10.99.0.12:9080/health", self.vm2.status()["health"]["probe"])
        condition = lambda: LAB.entries()["details-legacy-10.99.0.12"]["status"]["conditions"][0]
        until("istiod knows", lambda: condition()["status"] == "False")
        (files / "sick").unlink()
        until("istiod knows that it is well", lambda: condition()["status"] == "True")

    @on_both
    def test_a_command_that_does_not_exist_is_refused_before_anything_starts(self):
        made = self.vm2.try_join("--set", "health.probe={exec: {command: [/no/such/check]}}")
        self.assertEqual(made.returncode, 4, made.stderr)
        self.assertIn("health.probe.exec", made.stderr)
        self.assertIn("there is no program /no/such/check", made.stderr)
        self.assertEqual(self.vm2.files(), [])

    @on_both
    def test_no_request_is_lost_while_one_of_two_machines_leaves_and_comes_back(self):
        self.serve("vm2")
        self.serve("vm3")
        for vm in (self.vm1, self.vm2, self.vm3):
            vm.join()
        for vm in (self.vm1, self.vm2, self.vm3):
            vm.until_ready()
        until("both are endpoints", lambda: self.endpoints() == {"10.99.0.12", "10.99.0.13"}, limit=60)
        call = lambda: LAB.curl("vm1", "http://details.internal.com/")
        until("the story works", lambda: answers(call), limit=60)
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(Load(call)) for _ in range(3)]
            enough = lambda more: until("requests go on", lambda: sum(load.good for load in loads) > more + 30)
            for _ in range(RETURNS):
                self.assertEqual(self.vm2.stop(), 0)
                enough(sum(load.good for load in loads))
                self.vm2.run().until_ready()
                until("both are endpoints again", lambda: self.endpoints() == {"10.99.0.12", "10.99.0.13"}, limit=60)
                enough(sum(load.good for load in loads))
        self.assertEqual([bad for load in loads for bad in load.bad], [])

    def test_a_denied_request_is_denied_at_every_moment_though_only_istiod_knows_the_labels(self):
        """A policy selects machines by labels that this one does not have in its own configuration. The development mesh selects by those
        of Envoy's node only."""
        self.serve("vm3")
        self.vm1.join().until_ready()
        source = LAB.configure("details-legacy", directory=LAB.directory / "join-unlabelled")
        for name in ("cluster.env", "mesh.yaml"):
            lines = (source / name).read_text().splitlines(keepends=True)
            (source / name).write_text("".join(line for line in lines if "LABELS" not in line and "CANONICAL" not in line))
        # Requests come up to the last moment, and from the first one on.
        self.vm3.join("--set", "registration.leaveDelay=0s", "--set", "proxy.terminationDrainDuration=100ms", source=source).until_ready()
        until("the story works", lambda: answers(lambda: LAB.curl("vm1", "http://details.internal.com/")), limit=60)
        with contextlib.ExitStack() as stack:
            denied = [stack.enter_context(Load(lambda: LAB.curl("vm1", "http://details.internal.com/secret"))) for _ in range(3)]
            for _ in range(4 * RETURNS):
                made = self.vm3.command("proxy", "restart")
                self.assertEqual(made.returncode, 0, made.stderr)
                self.vm3.until_ready()
                until("it serves", lambda: LAB.curl("vm1", "http://details.internal.com/")[0] == 200)
                before = [len(load.bad) for load in denied]
                until("it denies", lambda: any(load.good for load in denied) or all(len(load.bad) > old + 3 for load, old in zip(denied, before)))
        print(f"\n{self.id()}: {sum(len(load.bad) for load in denied)} requests", flush=True)
        self.assertEqual([load.good for load in denied], [0] * len(denied))
