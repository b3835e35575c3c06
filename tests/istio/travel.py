"""Time travel: machines that were off too long, credentials that are over, clocks that are wrong.

What comes back alone does, and what cannot says what to do. The other rows of this table are in `credential.py` (off past
the certificate with a token of the API server) and `sources.py` (a root that changed meanwhile, with the API server).
"""

import json
import pathlib
import time

from case import LAB, Case
from credential import aged_token, seconds_until
from lab import CONTROL_PLANE, until
from vm import AGENT

#: Seconds of life of the certificates: short, so that a machine is soon off for longer.
LIFE = 12
FAKETIME = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


class Travel(Case):
    def troubles(self, vm, words):
        """The conditions of a machine that say these words."""
        return [one for one in vm.status().get("conditions", []) if words in one["what"]]

    def off_past_the_certificate(self, vm):
        end = vm.status()["identity"]["not_after"]
        self.assertEqual(vm.stop(), 0)
        time.sleep(max(0, seconds_until(end)) + 1)

    def short_lived(self, vm, *flags, source=None):
        vm.join("--set", f"identity.ttl={LIFE}s", *flags, source=source)
        return vm.until_ready()

    def test_off_past_the_certificate_a_token_that_is_still_good_brings_it_back(self):
        before = self.short_lived(self.vm1)
        self.off_past_the_certificate(self.vm1)
        after = self.vm1.run().until_ready()
        self.assertNotEqual(after["identity"]["serial"], before["identity"]["serial"])
        self.assertEqual(after["registration"]["name"], before["registration"]["name"])

    def test_off_past_certificate_and_token_it_says_what_to_do_and_a_new_token_file_is_found(self):
        self.short_lived(self.vm1)
        self.off_past_the_certificate(self.vm1)
        token = self.vm1.root / "var/lib/vm-agent/istio-token"
        good = token.read_text()
        token.write_text(aged_token(made_ago=3600, left=-5, audience="istio-ca"))
        self.vm1.run()
        told = until("it says so", lambda: self.troubles(self.vm1, "expired at"))[0]
        self.assertIn("token", told["hint"])
        self.assertIn("expired at", self.vm1.command("status").stdout)
        # The replaced file is noticed by itself.
        token.write_text(good)
        self.vm1.until_ready()
        until("nothing is wrong any more", lambda: not self.vm1.status()["conditions"])

    def test_off_past_everything_a_fresh_bundle_mends_it_and_the_entry_stays(self):
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")
        self.addCleanup(self.forget_bundle)
        bundle = self.bundle()
        self.short_lived(self.vm2, source=bundle)
        before = LAB.entries()["vm2"]["metadata"]
        self.off_past_the_certificate(self.vm2)
        kube_token, istio_token = (self.vm2.root / "var/lib/vm-agent" / name for name in ("kube-token", "istio-token.json"))
        kube_token.write_text(aged_token(made_ago=7200, left=-60, account="details-legacy"))
        istio_token.unlink(missing_ok=True)
        self.vm2.run()
        told = until("it says so", lambda: self.troubles(self.vm2, "expired at"))[0]
        self.assertIn("bundle create", json.dumps(self.vm2.status()["conditions"]), told)
        self.assertEqual(self.vm2.stop(), 0)
        self.short_lived(self.vm2, source=self.bundle())
        after = LAB.entries()["vm2"]["metadata"]
        self.assertEqual(after["uid"], before["uid"])

    def bundle(self):
        path = LAB.directory / "travel.bundle.yaml"
        LAB.run("cp", AGENT, "bundle", "create", "details-legacy", "-n", "vms", "--kubeconfig", LAB.kubeconfig, "--gateway", CONTROL_PLANE, "-o", path)
        return path

    def forget_bundle(self):
        LAB.kubectl("-n", "vms", "delete", "--ignore-not-found", "role,rolebinding", "vm-agent-details-legacy")
        LAB.kubectl("delete", "--ignore-not-found", "validatingadmissionpolicybinding,validatingadmissionpolicy",
                    "vm-agent.vms.details-legacy", "vm-agent-tokens.vms.details-legacy")
        LAB.kubectl("-n", "vms", "delete", "secrets", "-l", "app.kubernetes.io/managed-by=vm-agent-operator")
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def test_off_through_a_change_of_the_root_without_the_api_server_joining_again_mends_it(self):
        self.short_lived(self.vm1)
        self.assertEqual(self.vm1.stop(), 0)
        self.new_root()
        self.vm1.run()
        told = until("it says so", lambda: self.troubles(self.vm1, "is not signed by a root of"))[0]
        self.assertIn("istio-ca-root-cert", told["hint"])
        self.assertEqual(self.vm1.stop(), 0)
        LAB.configure("client")
        self.short_lived(self.vm1)

    # --- clocks ---

    def with_clock(self, command, offset):
        """Starts the agent of vm1 with a clock that is wrong by `offset` seconds; returns what sets it."""
        self.assertIsNotNone(FAKETIME, "the package faketime is installed")
        clock = LAB.directory / "clock"
        def set_clock(seconds):
            fresh = clock.with_suffix(".new")
            fresh.write_text(f"{seconds:+d}\n")
            fresh.rename(clock)
        set_clock(offset)
        environment = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
        self.vm1.process = LAB.start("vm1", *command, log="vm1.log", environment=environment)
        return set_clock

    def test_a_clock_far_behind_is_said_and_all_is_well_once_it_is_right(self):
        self.vm1.join().until_ready()
        self.assertEqual(self.vm1.stop(), 0)
        (self.vm1.root / "var/lib/vm-agent/identity.json").unlink()
        set_clock = self.with_clock(self.vm1.command_line("run"), -7200)
        told = until("it says so", lambda: self.troubles(self.vm1, "is valid only from"))[0]
        self.assertIn("timedatectl", json.dumps(self.vm1.status()["conditions"]), told)
        self.assertFalse(self.vm1.status()["identity"]["valid"])
        set_clock(0)
        self.vm1.until_ready()

    def test_a_clock_that_steps_forth_and_back_renews_and_loses_nothing(self):
        set_clock = self.with_clock(self.vm1.join_command("--set", "identity.ttl=1h"), 0)
        first = self.vm1.until_ready()["identity"]["serial"]
        # Past the moment of renewal, and within the token's life.
        set_clock(2700)
        second = until("it is renewed", lambda: [one for one in [self.vm1.status()["identity"]] if one["serial"] != first], limit=90)[0]
        self.assertTrue(second["valid"])
        set_clock(0)
        time.sleep(2)
        status = self.vm1.until_ready()
        self.assertTrue(status["identity"]["valid"], status["conditions"])
        # The certificate is renewed by what is left of its real life.
        self.assertGreater(status["identity"]["expires_in"], 0)
        self.assertEqual(LAB.curl("vm1", "http://127.0.0.1:15021/healthz/ready", user=0)[0], 200)
