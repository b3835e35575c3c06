"""The proxy outlives the agent: whatever becomes of the agent's process, no request is lost."""

import contextlib
import os
import shutil
import signal
import threading
import time

from case import LAB, BothWays, Load, answers
from lab import until
from vm import AGENT, Vm

#: Seconds of life of the certificates: they have to be renewed by agents that adopted.
LIFE = 30


class Survival(BothWays):
    def setUp(self):
        super().setUp()
        self.calls = list(self.join_both_ways("--set", f"identity.ttl={LIFE}s").values())

    @contextlib.contextmanager
    def nothing_lost(self, *calls):
        """A load of which nothing may be lost."""
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(Load(call)) for call in calls]
            def go_on():
                before = [load.good for load in loads]
                until("requests go on", lambda: all(load.good > old + 10 for load, old in zip(loads, before)))
            go_on()
            yield
            go_on()
        print(f"\n{self.id()}: {[load.good for load in loads]} requests", flush=True)
        self.assertEqual([bad for load in loads for bad in load.bad], [])

    def entries(self):
        return {name: entry["metadata"]["uid"] for name, entry in LAB.entries().items()}

    def kill(self, vm):
        """The agent dies; nothing else does."""
        vm.process.kill()
        vm.process.wait()

    def check(self, vm, before, entries):
        """It is the same proxy, in good order, with the same entry, and gets its next certificates."""
        after = vm.until_ready()
        self.assertEqual((after["proxy"]["pid"], after["proxy"]["origin"], after["proxy"]["restarts"]), (before["proxy"]["pid"], "adopted", 0))
        self.assertNotEqual(after["pid"], before["pid"])
        self.assertEqual(after["proxy"]["version"], before["proxy"]["version"])
        self.renewed(vm)
        self.assertEqual(self.entries(), entries)

    def renewed(self, vm):
        """The agent has a new certificate made, and Envoy uses it."""
        serial = vm.status()["identity"]["serial"]
        def has_new():
            now = vm.status()["identity"]["serial"]
            return now != serial and int(now, 16) in [int(held, 16) for _, held in vm.certificates()]
        until("Envoy has the next certificate", has_new, limit=3 * LIFE)

    def test_killed_agents_are_replaced(self):
        entries = self.entries()
        with self.nothing_lost(*self.calls):
            for vm in (self.vm1, self.vm2):
                before = vm.status()
                self.kill(vm)
                # As long as a service manager waits before it starts it again, and longer.
                time.sleep(2)
                vm.run()
                self.check(vm, before, entries)

    def test_the_agent_after_one_whose_labels_have_changed_goes_on_with_the_proxy(self):
        """Envoy says for its whole life who it was at its start; istiod hears who the machine is."""
        before = self.vm2.status()
        self.vm2.configure({"workload": {"labels": {"version": "2"}}})
        labels = lambda: LAB.entries()["vm2"]["spec"]["labels"].get("version")
        until("the entry has the new label", lambda: labels() == "2")
        until("the new stream serves", lambda: self.settled(self.vm2) and answers(self.calls[0]))
        entries = self.entries()
        with self.nothing_lost(*self.calls):
            self.kill(self.vm2)
            self.vm2.run()
            self.check(self.vm2, before, entries)
        self.assertEqual(labels(), "2")

    def settled(self, vm):
        """Its stream to istiod stays: one that is frozen without a stream for longer than istiod's grace loses the entry that istiod
        made."""
        line = vm.status()["control_plane"]
        return line["services"]["ports"] and line["phase"] == "connected"

    def test_an_agent_that_is_frozen_for_a_while_goes_on(self):
        entries = self.entries()
        for vm in (self.vm1, self.vm2):
            until("its streams are opened", lambda: self.settled(vm))
        with self.nothing_lost(*self.calls):
            before = [vm.status() for vm in (self.vm1, self.vm2)]
            for vm in (self.vm1, self.vm2):
                os.kill(vm.process.pid, signal.SIGSTOP)
            time.sleep(10)
            for vm in (self.vm1, self.vm2):
                os.kill(vm.process.pid, signal.SIGCONT)
            for vm, old in zip((self.vm1, self.vm2), before):
                now = vm.until_ready()
                self.assertEqual((now["pid"], now["proxy"]["pid"]), (old["pid"], old["proxy"]["pid"]))
                self.renewed(vm)
        self.assertEqual(self.entries(), entries)

    def test_another_binary_takes_over(self):
        entries = self.entries()
        copy = LAB.directory / "another-vm-agent"
        shutil.copy(AGENT, copy)
        with self.nothing_lost(*self.calls):
            for vm in (self.vm1, self.vm2):
                before = vm.status()
                self.kill(vm)
                vm.process = LAB.start(vm.name, copy, "--root", vm.root, "run", log=f"{vm.name}.log")
                self.check(vm, before, entries)
        self.assertEqual(os.readlink(f"/proc/{self.vm2.process.pid}/exe"), str(copy))

    def endpoints(self):
        """Where vm1's Envoy sends requests for the service."""
        lines = self.vm1.admin("/clusters").splitlines()
        return {line.split("::")[1].split(":")[0] for line in lines if line.startswith("outbound|80||details.internal.com::10.")}

    def two_endpoints(self):
        """A third machine serves what the second one does."""
        self.serve("vm3")
        vm3 = Vm(LAB, "vm3", "10.99.0.13", "details-legacy")
        vm3.capture = "nftables"
        self.addCleanup(LAB.forget_rules, "vm3")
        self.addCleanup(vm3.reset)
        vm3.join().until_ready()
        both = {self.vm2.ip, vm3.ip}
        until("both are endpoints", lambda: self.endpoints() == both)
        return both

    def test_a_drain_by_hand_and_its_end_lose_nothing_and_nor_does_the_next_agent(self):
        both = self.two_endpoints()
        with self.nothing_lost(*self.calls):
            made = self.vm2.command("proxy", "drain")
            self.assertEqual(made.returncode, 0, made.stderr)
            until("the drained machine is left out", lambda: self.endpoints() == both - {self.vm2.ip})
            before = self.vm2.status()
            self.assertEqual(before["phase"], "drained")
            # What comes all the same is served, and what the machine itself asks for.
            self.assertEqual([call()[0] for call in self.calls], [200, 200])
            self.kill(self.vm2)
            self.vm2.run()
            until("the next agent finds it so", lambda: self.vm2.status().get("phase") == "drained")
            self.assertEqual(self.vm2.status()["proxy"]["pid"], before["proxy"]["pid"])
            made = self.vm2.command("proxy", "undrain")
            self.assertEqual(made.returncode, 0, made.stderr)
            self.vm2.until_ready()
            until("both are endpoints again", lambda: self.endpoints() == both)

    def test_a_restart_by_hand_costs_the_others_nothing_and_the_machine_itself_a_moment(self):
        both = self.two_endpoints()
        before = self.vm2.status()["proxy"]
        with self.nothing_lost(self.calls[0]), Load(self.calls[1]) as own:
            made = self.vm2.command("proxy", "restart")
            self.assertEqual(made.returncode, 0, made.stderr)
            after = self.vm2.until_ready()["proxy"]
            self.assertNotEqual(after["pid"], before["pid"])
            self.assertEqual((after["restarts"], after["ordered_restarts"]), (0, 1))
            until("both are endpoints again", lambda: self.endpoints() == both)
        # What the machine itself asks for while no proxy runs is refused at once.
        print(f"{len(own.bad)} of {own.good + len(own.bad)} requests of the machine itself were refused", flush=True)
        self.assertEqual({code for _, code, _ in own.bad} - {0}, set())

    @contextlib.contextmanager
    def hears_late(self, vm):
        """For longer than `registration.leaveDelay` this machine's Envoy is told nothing of the others."""
        os.kill(vm.process.pid, signal.SIGSTOP)
        thaw = threading.Timer(3.5, os.kill, (vm.process.pid, signal.SIGCONT))
        thaw.start()
        yield
        thaw.join()

    def test_those_who_hear_late_of_a_machine_that_restarts_or_stops_lose_nothing(self):
        both = self.two_endpoints()
        with self.nothing_lost(self.calls[0], self.calls[0], self.calls[0]):
            with self.hears_late(self.vm1):
                made = self.vm2.command("proxy", "restart")
                self.assertEqual(made.returncode, 0, made.stderr)
                self.vm2.until_ready()
            until("both are endpoints again", lambda: self.endpoints() == both)
            with self.hears_late(self.vm1):
                self.assertEqual(self.vm2.stop(), 0)
            until("the machine that has stopped is left out", lambda: self.endpoints() == both - {self.vm2.ip})

    def test_leaving_without_an_agent_leaves_no_proxy(self):
        self.kill(self.vm2)
        self.assertEqual(self.calls[0]()[0], 200, "it serves on")
        made = self.vm2.command("leave")
        self.assertEqual(made.returncode, 0, made.stderr)
        self.assertEqual(self.vm2.files(), [])
        names = [os.path.basename(os.readlink(f"/proc/{pid}/exe")) for pid in LAB.pids("vm2")]
        self.assertNotIn("envoy", names)
        self.assertNotIn("vm2", LAB.entries())
