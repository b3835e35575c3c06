"""What a machine serves is what istiod configures it to serve, whatever happens to its entry and to its way to the control plane.

Every effect is judged by requests: they are answered again, and go on being answered.
"""

import contextlib
import json
import time

from case import LAB, BothWays, Load, answers
from lab import CONTROL_PLANE, STORY, until

#: How long istiod keeps a machine without a stream (PILOT_WORKLOAD_ENTRY_GRACE_PERIOD), and a moment for it to act.
GRACE = 10 + 3
#: So many requests show that a machine goes on serving.
REQUESTS = 50
#: After which silence istiod and the agent give a connection up, at the latest, in seconds.
SILENCE = 45


class Convergence(BothWays):
    def setUp(self):
        super().setUp()
        self.calls = self.join_both_ways()
        self.entry_of = {"vm1": "client-10.99.0.11", "vm2": "vm2"}

    def uid(self, name):
        return LAB.entries().get(name, {"metadata": {"uid": None}})["metadata"]["uid"]

    def services(self, vm):
        return vm.status()["control_plane"]["services"]

    @contextlib.contextmanager
    def as_before(self, name):
        """What happens inside may cost requests to this machine for a moment; then they are answered, and go on to be."""
        before = self.services(getattr(self, name))["resubscriptions"]
        with Load(self.calls[name]) as load:
            until("requests go on", lambda: load.good > 5)
            start = time.monotonic()
            yield load
            until("a request is answered", lambda: self.calls[name]()[0] == 200, limit=120)
            took, lost = time.monotonic() - start, len(load.bad)
        with Load(self.calls[name]) as load:
            until("requests go on", lambda: load.good + len(load.bad) > REQUESTS, limit=300)
        status = getattr(self, name).status()
        after = status["control_plane"]["services"]["resubscriptions"]
        print(f"\n  {self.id()}: {name} answers after {took:.1f} s, {lost} requests lost, {after - before} resubscriptions", end="", flush=True)
        self.assertEqual(load.bad, [])
        self.assertTrue(status["ready"])
        self.assertEqual(status["control_plane"]["services"]["missing"], [])

    def deleted(self, name):
        entry = self.entry_of[name]
        uid = self.uid(entry)
        LAB.kubectl("-n", "vms", "delete", "workloadentry", entry, "--wait=false")
        until("the entry was made anew", lambda: self.uid(entry) not in (None, uid))

    def test_a_deleted_entry_costs_a_moment_where_the_machine_registers_itself(self):
        for _ in range(3):
            with self.as_before("vm2"):
                self.deleted("vm2")

    def test_a_deleted_entry_costs_a_moment_where_istiod_registers(self):
        with self.as_before("vm1"):
            self.deleted("vm1")

    def test_an_edited_entry_costs_a_moment(self):
        spec = lambda: LAB.entries()["vm2"]["spec"]
        whole = spec()
        for operation in ({"op": "remove", "path": "/spec/labels/app"}, {"op": "remove", "path": "/spec/ports"} if "ports" in whole else
                          {"op": "remove", "path": "/spec/serviceAccount"}):
            with self.as_before("vm2"):
                LAB.kubectl("-n", "vms", "patch", "workloadentry", "vm2", "--type=json", "-p", json.dumps([operation]))
                until("the entry is whole again", lambda: spec() == whole)

    def test_a_service_that_goes_and_comes_back_is_served_again(self):
        with Load(self.calls["vm2"]) as load:
            until("requests go on", lambda: load.good > 5)
            entry = LAB.kubectl("-n", "vms", "get", "serviceentry", "details", "-o", "json").stdout
            LAB.kubectl("-n", "vms", "delete", "serviceentry", "details")
            until("Envoy does not serve it", lambda: "inbound|9080||" not in self.vm2.admin("/clusters"))
        self.assertEqual(self.services(self.vm2)["missing"], [])
        found = json.loads(entry)
        for field in ("uid", "resourceVersion", "creationTimestamp", "managedFields", "generation"):
            found["metadata"].pop(field, None)
        found.pop("status", None)
        LAB.apply(json.dumps(found))
        until("requests are answered", lambda: answers(self.calls["vm2"]))
        with Load(self.calls["vm2"]) as load:
            until("requests go on", lambda: load.good + len(load.bad) > REQUESTS, limit=300)
        self.assertEqual(load.bad, [])

    @contextlib.contextmanager
    def without(self, name, *ports):
        """Packets between this machine and the control plane are dropped, without a word to anybody."""
        ports = ", ".join(map(str, ports))
        rules = "".join(f"chain {hook} {{ type filter hook {hook} priority 0; ip {side} {CONTROL_PLANE} tcp {port} {{ {ports} }} drop; }}\n"
                        for hook, side, port in (("input", "saddr", "sport"), ("output", "daddr", "dport")))
        LAB.run(name, "nft", "-f", "-", input=f"table inet broken {{\n{rules}}}\n")
        try:
            yield
        finally:
            LAB.run(name, "nft", "delete", "table", "inet", "broken", check=False)

    def test_a_break_of_the_way_to_the_control_plane_costs_a_moment(self):
        """Both machines are cut off for so long that istiod forgets them."""
        with self.as_before("vm1"), self.as_before("vm2"):
            with self.without("vm1", 15012, 6443), self.without("vm2", 15012, 6443):
                def forgotten():
                    entries = LAB.entries()
                    conditions = entries["vm2"].get("status", {}).get("conditions", [])
                    return "client-10.99.0.11" not in entries and not conditions
                until("istiod has forgotten both", forgotten, limit=SILENCE + 2 * GRACE + 60)
            until("both are known again", lambda: {"client-10.99.0.11", "vm2"} <= set(LAB.entries()), limit=120)

    def test_an_agent_that_starts_while_only_the_kubernetes_api_is_away_loses_nothing(self):
        with Load(self.calls["vm2"]) as load, Load(self.calls["vm1"]) as own:
            until("requests go on", lambda: load.good > 5)
            with self.without("vm2", 6443):
                self.vm2.process.kill()
                self.vm2.process.wait()
                start = time.monotonic()
                self.vm2.run()
                until("istiod is called", lambda: self.vm2.status()["control_plane"]["phase"] == "connected")
                print(f"\n  {self.id()}: a stream after {time.monotonic() - start:.1f} s", end="", flush=True)
                # istiod gives up a machine that has not come back by then.
                until("the grace is over", lambda: time.monotonic() > start + GRACE)
                registration = self.vm2.status()["registration"]
                self.assertEqual((registration["registered"], registration["assumed"]), (True, True))
                self.assertIn("the WorkloadEntry could not be applied", registration["trouble"]["what"])
            until("the entry is looked at", lambda: not self.vm2.status()["registration"]["assumed"], limit=90)
            self.assertIsNone(self.vm2.status()["registration"]["trouble"])
        print(f", {load.good} and {own.good} requests", end="", flush=True)
        self.assertEqual((load.bad, own.bad), ([], []))

    def test_a_registration_that_istiod_refuses_later_is_not_called_one(self):
        registration = lambda: self.vm1.status()["registration"]
        self.assertTrue(registration()["registered"])
        self.addCleanup(LAB.kubectl, "apply", "-f", STORY)
        LAB.kubectl("-n", "vms", "delete", "workloadgroup", "client")
        LAB.kubectl("-n", "vms", "delete", "workloadentry", "client-10.99.0.11", check=False)
        LAB.istiod_stop()
        LAB.istiod_start()
        until("it is known", lambda: not registration()["registered"])
        found = registration()
        self.assertEqual(found["phase"], "failed")
        self.assertIn("WorkloadGroup", found["trouble"]["what"])
        self.assertFalse(self.vm1.status()["ready"])
        LAB.kubectl("apply", "-f", STORY)
        until("it is registered again", lambda: registration()["registered"], limit=90)
        until("a request is answered", lambda: self.calls["vm1"]()[0] == 200)
