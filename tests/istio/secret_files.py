"""Files that a DestinationRule names: a tenant of the mesh stops no agent with them, and gets no file but certificates."""

import os

from case import LAB, Traffic
from lab import until

#: Renewals happen while the rule is there.
LIFE = "20s"


def tenant(path):
    """A tenant with one service and one rule, which concern the tenant alone. Every proxy of the mesh gets them."""
    return f"""
apiVersion: v1
kind: Namespace
metadata: {{name: tenant}}
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: outside, namespace: tenant}}
spec:
  hosts: [outside.example.com]
  addresses: [240.9.9.9]
  ports: [{{number: 443, name: http, protocol: HTTP}}]
  resolution: STATIC
  endpoints: [{{address: 10.99.0.1}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: outside, namespace: tenant}}
spec:
  host: outside.example.com
  trafficPolicy: {{tls: {{mode: SIMPLE, caCertificates: {path}}}}}
"""


class SecretFiles(Traffic):
    def setUp(self):
        super().setUp()
        self.addCleanup(LAB.kubectl, "delete", "namespace", "tenant", "--ignore-not-found", "--wait=false")
        self.certs = LAB.directory / "certs"
        self.certs.mkdir(exist_ok=True)
        self.certs.chmod(0o755)

    def condition(self, vm):
        return [one for one in vm.status()["conditions"] if one["room"] == "secrets"]

    def test_a_named_pipe_in_a_destination_rule_holds_up_no_agent(self):
        pipe = self.certs / "pipe"
        if not pipe.exists():
            os.mkfifo(pipe, 0o644)
        for vm in (self.vm1, self.vm2):
            vm.join("--set", f"proxy.secretDirectories={self.certs}", "--set", f"identity.ttl={LIFE}")
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        for path, words in ((pipe, "found a named pipe"), (self.vm1.root / "run/vm-agent/envoy.out", "proxy.secretDirectories")):
            with self.traffic() as load:
                LAB.apply(tenant(path))
                for vm in (self.vm1, self.vm2):
                    told = until(f"{vm.name} says what is wrong", lambda: self.condition(vm))[0]
                    self.assertIn(words, told["what"] + told["hint"])
                    serial = vm.status()["identity"]["serial"]
                    until(f"{vm.name} renews its certificate", lambda: vm.status()["identity"]["serial"] != serial)
                    until("and Envoy has it", lambda: int(vm.status()["identity"]["serial"], 16) in
                          [int(held, 16) for uri, held in vm.certificates() if uri and uri.startswith("spiffe://")])
                LAB.kubectl("-n", "tenant", "delete", "destinationrule", "outside")
                for vm in (self.vm1, self.vm2):
                    until(f"{vm.name} is well", lambda: not self.condition(vm))
            self.assertGreater(load.good, 3)
            self.assertEqual(load.bad, [])
