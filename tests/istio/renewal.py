"""Nothing is lost while certificates are renewed, istiod is away, or an agent stops."""

import os
import threading

from case import LAB, Traffic
from lab import CONTROL_PLANE, until

#: Seconds of life of the certificates in the renewal tests; the product's promise is tried with 60.
SHORT_LIFE = int(os.environ.get("VM_AGENT_SHORT_LIFE", "16"))
RENEWALS = 10


class Renewal(Traffic):
    def test_ten_renewals_reach_envoy_and_no_request_is_refused(self):
        life = ["--set", f"identity.ttl={SHORT_LIFE}s"]
        self.vm1.join(*life)
        self.vm2.join(*life)
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        with self.traffic() as load:
            secret = LAB.curl("vm1", "-H", "Host: details.internal.com", "http://240.1.2.3/secret")
            self.assertEqual(secret[0], 403, "the policy knows the caller's identity")
            seen = set()
            def all_seen():
                seen.update(serial for uri, serial in self.vm1.certificates() if uri.startswith("spiffe://"))
                return len(seen) > RENEWALS
            until(f"Envoy had {RENEWALS} renewed certificates", all_seen, limit=SHORT_LIFE * RENEWALS * 2, pause=0.5)
        self.assertGreater(load.good, RENEWALS)
        self.assertEqual(load.bad, [])
        status = self.vm1.status()["identity"]
        self.assertGreater(status["renewal"]["issued"], RENEWALS)
        self.assertEqual(status["renewal"]["failures"], 0)

    def test_an_istiod_that_was_away_for_longer_than_an_interval_is_survived(self):
        # The interval between two renewals is half of a life; the certificate itself must outlive istiod's start.
        life = 3 * SHORT_LIFE
        # A machine without a resolver has a condition that says so.
        self.resolver({})
        self.resolvers(f"nameserver {CONTROL_PLANE}\n")
        for vm in (self.vm1, self.vm2):
            vm.join("--set", f"identity.ttl={life}s")
        self.vm1.until_ready()
        self.vm2.until_ready()
        with self.traffic() as load:
            before = {vm: vm.status()["identity"]["serial"] for vm in (self.vm1, self.vm2)}
            LAB.istiod_stop()
            try:
                for vm in before:
                    until("the status says that istiod is away", lambda: vm.status()["conditions"], limit=life)
                    until("renewals fail", lambda: vm.status()["identity"]["renewal"]["failures"], limit=life)
            finally:
                LAB.istiod_start()
            for vm, serial in before.items():
                until("it goes on by itself", lambda: vm.status()["ready"] and vm.status()["identity"]["serial"] != serial, limit=60)
                until("the conditions are gone", lambda: not vm.status()["conditions"], limit=60)
        self.assertGreater(load.good, 10)
        self.assertEqual(load.bad, [])


class Draining(Traffic):
    def test_a_request_under_way_is_finished_before_the_agent_ends(self):
        self.vm1.join()
        self.vm2.join()
        self.vm1.until_ready()
        self.vm2.until_ready()
        files = self.serve("vm2")
        ask = lambda path: LAB.curl("vm1", f"http://details.internal.com{path}")
        until("the story works", lambda: ask("/")[0] == 200, limit=90)
        found = []
        asking = threading.Thread(target=lambda: found.append(ask("/slow")))
        asking.start()
        until("the request has arrived", (files / "arrived").exists)
        self.assertEqual(self.vm2.stop(), 0)
        asking.join(30)
        self.assertEqual([code for code, _ in found], [200], self.vm2.log()[-2000:])
