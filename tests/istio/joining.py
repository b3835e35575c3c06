"""Machines join and leave, by istiod's registration and by their own."""

import subprocess

from case import LAB, Case, on_both
from lab import CONTROL_PLANE, until


class Joining(Case):
    @on_both
    def test_two_machines_join_by_istiods_registration(self):
        self.vm1.join()
        self.vm2.join()
        for vm in (self.vm1, self.vm2):
            status = vm.until_ready()
            identity = f"spiffe://cluster.local/ns/vms/sa/{vm.group}"
            self.assertEqual(vm.health_page(), 200)
            entry = LAB.entries()[f"{vm.group}-{vm.ip}"]["spec"]
            self.assertEqual((entry["address"], entry["serviceAccount"]), (vm.ip, vm.group))
            self.assertEqual(entry["labels"]["app"], vm.group)
            self.assertIn(identity, [uri for uri, _ in vm.certificates()])
            counts = vm.stats("update_(success|rejected)")
            self.assertGreater(counts["cluster_manager.cds.update_success"], 0)
            self.assertGreater(counts["listener_manager.lds.update_success"], 0)
            self.assertEqual([name for name, count in counts.items() if name.endswith("rejected") and count], [])
            self.assertIn("outbound|80||details.internal.com", vm.admin("/clusters"), "its configuration is istiod's")
            self.assertEqual((status["identity"]["id"], status["identity"]["valid"]), (identity, True))
            self.assertEqual(status["registration"]["name"], f"{vm.group}-{vm.ip}")
            # A machine that has just become healthy gets a new stream.
            connected = lambda: [one for one in [vm.status()["control_plane"]] if one["phase"] == "connected"]
            self.assertEqual(until("it is connected", connected)[0]["rejected"], 0)
            self.assertEqual((status["proxy"]["phase"], status["conditions"]), ("ready", []))
            self.assertEqual(vm.command("wait", "--for", "ready", "--timeout", "5s").returncode, 0)
            self.assertIn(identity, vm.command("cert", "show", check=True).stdout)
            metrics = LAB.curl(vm.name, "http://127.0.0.1:15020/stats/prometheus", user=0)[1]
            self.assertIn('istio_agent_cert_expiry_seconds{resource_name="default"}', metrics)
        until("the join has said what it came to", lambda: "is in the mesh as spiffe" in self.vm2.log())
        self.assertIn("it serves as 2 services (details.internal.com, echo.internal.com)", self.vm2.log())

    @on_both
    def test_envoy_runs_as_its_own_user_without_our_environment(self):
        status = self.vm1.join().until_ready()
        proc = f"/proc/{status['proxy']['pid']}"
        with open(f"{proc}/status", encoding="utf-8") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        self.assertEqual(fields["Uid"].split()[0], "1337")
        self.assertEqual((fields["Groups"].strip(), fields["NoNewPrivs"]), ("", "1"))
        with open(f"{proc}/environ", encoding="utf-8") as file:
            self.assertEqual([one.split("=")[0] for one in file.read().split("\0") if one], ["PATH"])
        secret = subprocess.run(["find", self.vm1.root, "-name", "identity.json", "-perm", "600"], capture_output=True, text=True)
        self.assertIn("identity.json", secret.stdout)

    @on_both
    def test_the_machine_chooses_the_address_of_its_route_to_istiod(self):
        command = self.vm1.join_command()
        at = command.index("--address")
        self.vm1.process = LAB.start("vm1", *command[:at], *command[at + 2:], log="vm1.log")
        self.assertEqual(self.vm1.until_ready()["workload"]["address"], "10.99.0.11")

    @on_both
    def test_sigterm_drains_and_leaves_nothing_behind(self):
        self.vm1.join().until_ready()
        self.assertEqual(self.vm1.stop(), 0, self.vm1.log()[-2000:])
        self.assertEqual(LAB.pids("vm1"), [])
        self.assertFalse((self.vm1.root / "run/vm-agent").exists())
        self.no_entries()

    @on_both
    def test_a_second_join_with_the_same_source_is_harmless_and_a_running_agent_is_said(self):
        self.vm1.join().until_ready()
        again = self.vm1.try_join()
        self.assertEqual(again.returncode, 10, again.stderr)
        self.assertEqual(self.vm1.stop(), 0)
        self.vm1.join().until_ready()
        self.assertIn("unchanged below", self.vm1.log())

    @on_both
    def test_leave_removes_everything(self):
        self.vm1.join().until_ready()
        left = self.vm1.command("leave")
        self.assertEqual(left.returncode, 0, left.stderr)
        self.assertEqual((self.vm1.process.wait(30), self.vm1.files(), LAB.pids("vm1")), (0, [], []))


class Kubernetes(Case):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def flags(self, token="kube-token", account="details-legacy"):
        path = LAB.directory / token
        path.write_text(LAB.token(account, "https://kubernetes.default.svc"))
        return ["--registration", "kubernetes", "--kube-server", f"https://{CONTROL_PLANE}:6443", "--kube-ca", LAB.server_ca,
                "--kube-token-file", path]

    @on_both
    def test_the_entry_has_every_field_and_leave_removes_it(self):
        self.vm2.join(*self.flags(), "--network", "", "--locality", "eu/a/rack1", "--label", "version=v1",
                      "--set", "workload.weight=7", "--set", "workload.ports.admin=9901")
        status = self.vm2.until_ready()
        self.assertEqual((status["registration"]["mode"], status["registration"]["phase"]), ("kubernetes", "registered"))
        entry = LAB.entries()["vm2"]
        self.assertEqual(entry["spec"]["address"], "10.99.0.12")
        self.assertEqual((entry["spec"]["serviceAccount"], entry["spec"]["locality"], entry["spec"]["weight"]), ("details-legacy", "eu/a/rack1", 7))
        self.assertEqual(entry["spec"]["ports"], {"http": 9080, "tcp-echo": 9090, "admin": 9901})
        self.assertEqual((entry["spec"]["labels"]["app"], entry["spec"]["labels"]["version"]), ("details-legacy", "v1"))
        self.assertEqual(list(LAB.entries()), ["vm2"], "istiod made no second one")
        left = self.vm2.command("leave")
        self.assertEqual(left.returncode, 0, left.stderr)
        self.assertEqual((LAB.entries(), self.vm2.files(), LAB.pids("vm2")), ({}, [], []))

    @on_both
    def test_a_network_is_registered_too(self):
        self.vm2.join(*self.flags(), "--network", "vm-network").until_ready()
        self.assertEqual(LAB.entries()["vm2"]["spec"]["network"], "vm-network")
        self.assertEqual(self.vm2.command("leave").returncode, 0)

    @on_both
    def test_an_entry_is_removed_on_stop_where_that_is_asked_for(self):
        self.vm2.join(*self.flags(), "--set", "registration.removeOnStop=true").until_ready()
        self.assertEqual(self.vm2.stop(), 0)
        self.assertEqual(LAB.entries(), {})

    @on_both
    def test_a_refusal_by_rbac_says_which_role_is_missing_and_undoes_the_join(self):
        refused = self.vm1.try_join(*self.flags(account="client"))
        self.assertEqual(refused.returncode, 7, refused.stderr)
        self.assertIn("Forbidden", refused.stderr)
        self.assertIn("a Role with verbs", refused.stderr)
        self.assertEqual(self.vm1.files(), [])
