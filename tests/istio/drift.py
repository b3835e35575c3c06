"""The WorkloadEntry, kept true: what others do to it, what happens to its machine, and what another Envoy sees of it."""

import json
import threading
import time

from case import LAB, Load, Traffic
from lab import CONTROL_PLANE, until
from vm import Vm

CLUSTER = "outbound|80||details.internal.com"
AUDIENCE = "https://kubernetes.default.svc"


class Watcher:
    """Looks all the time at what an Envoy knows of a service's endpoints."""

    def __init__(self, vm):
        self.vm, self.samples, self.ending = vm, [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def look(self):
        clusters = json.loads(self.vm.admin("/clusters?format=json"))["cluster_statuses"]
        hosts = [host for one in clusters if one["name"] == CLUSTER for host in one.get("host_statuses", [])]
        return [host["address"]["socket_address"]["address"] for host in hosts]

    def run(self):
        while not self.ending.is_set():
            self.samples.append((time.monotonic(), self.look()))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join(30)

    def longest_absence(self):
        """For how long there was no endpoint at all, in seconds."""
        longest, since = 0.0, None
        for moment, hosts in self.samples:
            if hosts:
                since = None
            else:
                since = since or moment
                longest = max(longest, moment - since)
        return longest

    def most(self):
        return max((len(hosts) for _, hosts in self.samples), default=0)


class Drift(Traffic):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")
        self.vm3 = Vm(LAB, "vm3", "10.99.0.13", "details-legacy")
        self.vm3.capture = "nftables"
        self.addCleanup(LAB.forget_rules, "vm3")
        self.addCleanup(self.vm3.reset)

    def command(self, vm, *flags, mode="kubernetes"):
        """A join without an address of the operator's: the machine has to find its own."""
        path = LAB.directory / f"kube-token-{vm.name}"
        path.write_text(LAB.token("details-legacy", AUDIENCE))
        command = vm.join_command("--registration", mode, "--label", "app=details-legacy", "--set", "workload.ports={http: 9080}",
                                  "--kube-server", f"https://{CONTROL_PLANE}:6443", "--kube-ca", LAB.server_ca,
                                  "--kube-token-file", path, *flags)
        at = command.index("--address")
        return command[:at] + command[at + 2:]

    def join(self, vm, *flags, mode="kubernetes"):
        vm.process = LAB.start(vm.name, *self.command(vm, *flags, mode=mode), log=f"{vm.name}.log")
        vm.until_ready()

    def both(self, *flags):
        """vm1 calls vm2, whose entry is written by its own agent."""
        self.serve("vm2")
        self.vm1.join().until_ready()
        self.join(self.vm2, *flags)
        watcher = Watcher(self.vm1)
        until("vm1's Envoy has the endpoint", lambda: watcher.look() == [self.vm2.ip])
        until("the service answers", lambda: LAB.curl("vm1", "http://details.internal.com/")[0] == 200)
        return watcher

    def entry(self, name="vm2"):
        got = LAB.kubectl("-n", "vms", "get", "workloadentry", name, "-o", "json", check=False)
        return json.loads(got.stdout) if got.returncode == 0 else None

    def spec(self, name="vm2"):
        entry = self.entry(name)
        return entry["spec"] if entry else {}

    def patch(self, operations, name="vm2"):
        LAB.kubectl("-n", "vms", "patch", "workloadentry", name, "--type=json", "-p", json.dumps(operations))

    def measured(self, what, act, check, limit=60):
        """Does something, waits for its end, and prints how long that took."""
        start = time.monotonic()
        act()
        found = until(what, check, limit=limit, pause=0.02)
        print(f"\n  {what}: {time.monotonic() - start:.2f} s", end="", flush=True)
        return found

    def condition(self, vm, room):
        found = [one for one in vm.status()["conditions"] if one["room"] == room]
        return found[0]["what"] if found else ""

    def test_what_others_do_to_the_entry_is_undone_or_said(self):
        watcher = self.both()
        whole = self.spec()
        self.assertEqual((whole["address"], whole["serviceAccount"], whole["ports"]["http"]), (self.vm2.ip, "details-legacy", 9080))
        with watcher:
            uid = self.entry()["metadata"]["uid"]
            anew = lambda: (self.entry() or {"metadata": {"uid": uid}})["metadata"]["uid"] != uid
            self.measured("a deleted entry is there again", lambda: LAB.kubectl("-n", "vms", "delete", "workloadentry", "vm2", "--wait=false"), anew)
            self.assertEqual(self.spec(), whole)
            self.measured("and it is an endpoint again", lambda: None, lambda: watcher.look() == [self.vm2.ip])
            self.measured("a removed label is there again", lambda: self.patch([{"op": "remove", "path": "/spec/labels/app"}]),
                          lambda: self.spec() == whole)
            self.measured("a removed field is there again", lambda: self.patch([{"op": "remove", "path": "/spec/ports"}]),
                          lambda: self.spec() == whole)
            LAB.kubectl("-n", "vms", "label", "workloadentry", "vm2", "team=red")
            self.measured("who took a field is named", lambda: self.patch([{"op": "replace", "path": "/spec/ports/http", "value": 9090}]),
                          lambda: ".spec.ports.http (kubectl-patch)" in self.condition(self.vm2, "registration"))
            self.assertEqual(self.spec()["ports"]["http"], 9090, "it is not taken back")
            self.assertTrue(self.vm2.status()["registration"]["registered"])
            self.measured("and it is ours again when they let go of it", lambda: self.patch([{"op": "remove", "path": "/spec/ports/http"}]),
                          lambda: self.spec() == whole)
            until("nothing is wrong", lambda: not self.condition(self.vm2, "registration"))
            self.assertEqual(self.entry()["metadata"]["labels"]["team"], "red", "what others add stays")
        self.assertLessEqual(watcher.most(), 1, "duplicate endpoints were seen")
        print(f"\n  longest time without the endpoint, {len(watcher.samples)} looks: {watcher.longest_absence():.2f} s", flush=True)

    def test_by_force_a_stolen_field_is_taken_back(self):
        self.both("--set", "registration.force=true")
        whole = self.spec()
        self.measured("a stolen label is taken back", lambda: self.patch([{"op": "replace", "path": "/spec/labels/app", "value": "x"}]),
                      lambda: self.spec() == whole)

    def test_a_new_address_and_new_labels_arrive_without_a_duplicate(self):
        LAB.run("vm2", "sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1")
        watcher = self.both()
        old, new = f"{self.vm2.ip}/24", "10.99.0.22"
        self.addCleanup(LAB.run, "vm2", "ip", "addr", "del", f"{new}/24", "dev", "eth0", check=False)
        self.addCleanup(LAB.run, "vm2", "ip", "route", "replace", "default", "via", CONTROL_PLANE)
        self.addCleanup(LAB.run, "vm2", "ip", "addr", "replace", old, "dev", "eth0")

        def move():
            LAB.run("vm2", "ip", "addr", "add", f"{new}/24", "dev", "eth0")
            LAB.run("vm2", "ip", "addr", "del", old, "dev", "eth0")
            LAB.run("vm2", "ip", "route", "replace", "default", "via", CONTROL_PLANE)

        with watcher:
            self.measured("the entry has the new address", move, lambda: self.spec().get("address") == new)
            self.measured("another Envoy has it", lambda: None, lambda: watcher.look() == [new])
            self.measured("it is served there", lambda: None, lambda: LAB.curl("vm1", "http://details.internal.com/")[0] == 200)
            self.assertEqual(list(LAB.entries())[-1], "vm2")
            self.measured("the entry has new labels", lambda: self.vm2.configure({"workload": {"labels": {"version": "2"}, "weight": 5}}),
                          lambda: (self.spec()["labels"].get("version"), self.spec().get("weight")) == ("2", 5))
            until("still one endpoint", lambda: watcher.look() == [new])
        self.assertLessEqual(watcher.most(), 1, "duplicate endpoints were seen")
        print(f"\n  longest time without the endpoint, {len(watcher.samples)} looks: {watcher.longest_absence():.2f} s", flush=True)

    def test_of_two_machines_with_one_name_the_second_is_refused(self):
        self.both()
        whole = self.spec()
        command = self.command(self.vm3)
        command[command.index("--name") + 1] = "vm2"
        refused = LAB.run("vm3", *command, check=False, timeout=90)
        self.assertEqual(refused.returncode, 7, refused.stderr)
        for words in ("WorkloadEntry vms/vm2 belongs to another machine", self.vm2.ip, "--name"):
            self.assertIn(words, refused.stderr)
        self.assertEqual(self.spec(), whole)
        self.assertEqual(self.vm2.status()["registration"]["drift"], 0)

    def test_the_name_of_a_machine_that_is_gone_is_taken_over(self):
        self.join(self.vm2)
        self.vm2.process.kill()
        until("istiod has noticed", lambda: "istio.io/disconnectedAt" in self.entry()["metadata"]["annotations"])
        command = self.command(self.vm3, "--set", "registration.takeOverAfter=3s")
        command[command.index("--name") + 1] = "vm2"
        until("istiod's word on its health is over", lambda: not self.entry().get("status", {}).get("conditions"), limit=60)
        self.vm3.process = LAB.start("vm3", *command, log="vm3.log")
        self.vm3.until_ready()
        self.assertEqual(self.spec()["address"], self.vm3.ip)
        self.assertIn("Took over the WorkloadEntry of another machine", self.vm3.log())

    def test_entries_of_siblings_that_never_came_back_are_removed(self):
        self.join(self.vm3)
        self.vm3.process.kill()
        until("istiod has noticed", lambda: "istio.io/disconnectedAt" in self.entry("vm3")["metadata"]["annotations"])
        self.join(self.vm2, "--set", "registration.removeStaleAfter=1h")
        self.vm2.stop()
        until("istiod's word on its health is over", lambda: not self.entry("vm3").get("status", {}).get("conditions"), limit=60)
        self.vm2.run("--set", "registration.removeStaleAfter=40s").until_ready()
        long_ago = "2026-01-01T00:00:00Z"
        self.measured("its entry is removed", lambda: LAB.kubectl("-n", "vms", "annotate", "--overwrite", "workloadentry", "vm3", f"istio.io/disconnectedAt={long_ago}"),
                      lambda: self.entry("vm3") is None)
        self.assertIsNotNone(self.entry())

    def relabel(self, with_credential):
        """A machine in the mode `istiod` whose labels change."""
        self.serve("vm2")
        self.vm1.join().until_ready()
        command = self.command(self.vm2, mode="istiod")
        if not with_credential:
            for flag in ("--kube-server", "--kube-ca", "--kube-token-file"):
                at = command.index(flag)
                command = command[:at] + command[at + 2:]
        self.vm2.process = LAB.start("vm2", *command, log="vm2.log")
        self.vm2.until_ready()
        name = f"details-legacy-{self.vm2.ip}"
        pid = self.vm2.status()["proxy"]["pid"]
        watcher = Watcher(self.vm1)
        until("vm1's Envoy has the endpoint", lambda: watcher.look() == [self.vm2.ip])
        with watcher:
            self.measured("istiod's entry has the new labels", lambda: self.vm2.configure({"workload": {"labels": {"version": "2"}}}),
                          lambda: self.spec(name).get("labels", {}).get("version") == "2")
            self.measured("and it is an endpoint again", lambda: None, lambda: watcher.look() == [self.vm2.ip])
        self.assertEqual(self.vm2.status()["proxy"]["pid"], pid, "Envoy was not restarted")
        self.assertLessEqual(watcher.most(), 1, "duplicate endpoints were seen")
        print(f"\n  longest time without the endpoint, {len(watcher.samples)} looks: {watcher.longest_absence():.2f} s", flush=True)

    def test_with_istiods_registration_new_labels_make_a_new_entry(self):
        self.relabel(with_credential=False)

    def test_with_a_credential_the_old_entry_goes_at_once(self):
        self.relabel(with_credential=True)

    def test_istiod_alone_keeps_what_it_was_told_first(self):
        """Why the old entry has to go: a machine that comes back with other labels keeps the old ones."""
        self.vm2.join("--set", "registration.gracePeriod=0s").until_ready()
        name = f"details-legacy-{self.vm2.ip}"
        self.vm2.stop()
        (self.vm2.root / "var/lib/vm-agent/registration.json").unlink()
        self.vm2.run("--set", "workload.labels={app: details-legacy, version: '2'}").until_ready()
        until("it is connected again", lambda: "istio.io/connectedAt" in (self.entry(name) or {"metadata": {"annotations": {}}})["metadata"]["annotations"])
        self.assertNotIn("version", self.spec(name)["labels"])

    def conditions(self, vm):
        return [one["what"] for one in vm.status().get("conditions", []) if one["room"] == "registration"]

    def test_a_copy_with_the_machine_id_of_a_running_machine_takes_nothing_from_it_and_both_say_so(self):
        for vm in (self.vm2, self.vm3):
            (vm.root / "etc").mkdir(parents=True, exist_ok=True)
            (vm.root / "etc/machine-id").write_text("c" * 32 + "\n")
        self.both()
        uid = self.entry()["metadata"]["uid"]
        with Load(lambda: LAB.curl("vm1", "http://details.internal.com/")) as load:
            copy = ["vm2" if one == "vm3" else one for one in self.command(self.vm3)]
            ended = LAB.run("vm3", *copy, check=False, timeout=90)
            self.assertEqual(ended.returncode, 7, ended.stderr)
            for address in (self.vm2.ip, self.vm3.ip):
                self.assertIn(address, ended.stderr)
            holder = until("the holder says so", lambda: self.conditions(self.vm2))
            self.assertIn(self.vm3.ip, holder[0])
            self.assertTrue(self.vm2.status()["ready"])
            self.assertEqual((self.spec()["address"], self.entry()["metadata"]["uid"]), (self.vm2.ip, uid))
            until("some requests were sent", lambda: load.good > 20)
        self.assertEqual(load.bad, [])
