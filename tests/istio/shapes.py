"""Other shapes of the story: IPv6 and dual stack, host names, sockets, locality and weight, a Kubernetes Service."""

import json

from case import LAB, Traffic
from lab import until


class Shapes(Traffic):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def endpoints(self, cluster):
        """What vm1's Envoy knows of a cluster's endpoints: address, locality, weight."""
        clusters = json.loads(self.vm1.admin("/clusters?format=json"))["cluster_statuses"]
        found = [one for one in clusters if one["name"] == cluster]
        return [(host["address"], host.get("locality", {}), host.get("weight")) for one in found for host in one.get("host_statuses", [])]

    def apply(self, text):
        LAB.apply(text)
        self.addCleanup(LAB.kubectl, "delete", "-f", "-", input=text)

    def answers(self, url, caller="vm1"):
        until(f"{url} is answered", lambda: LAB.curl(caller, url)[0] == 200, limit=60, pause=0.3)
        return json.loads(LAB.curl(caller, url)[1])

    def with_ipv6(self):
        for number, vm in ((11, self.vm1), (12, self.vm2)):
            LAB.run(vm.name, "ip", "-6", "addr", "replace", f"fd99::{number}/64", "dev", "eth0", "nodad")
            self.addCleanup(LAB.run, vm.name, "ip", "-6", "addr", "del", f"fd99::{number}/64", "dev", "eth0")

    def test_dual_stack_is_captured_and_answered_in_both_families(self):
        self.with_ipv6()
        self.serve("vm1")
        self.serve("vm2")
        self.vm1.join().until_ready()
        self.vm2.join().until_ready()
        self.assertEqual(self.answers("http://details.internal.com/")["name"], "vm2")
        # The machine's other family is as closed to strangers as the first.
        stranger = LAB.run("vm3", "ip", "-6", "addr", "replace", "fd99::13/64", "dev", "eth0", "nodad")
        self.addCleanup(LAB.run, "vm3", "ip", "-6", "addr", "del", "fd99::13/64", "dev", "eth0")
        self.assertEqual(stranger.returncode, 0)
        self.assertIn("ip6 saddr ::6", LAB.run("vm2", "nft", "list", "table", "inet", "vm_agent").stdout)
        refused = LAB.run("vm3", "curl", "-s", "-m", "5", "http://[fd99::12]:9080/", check=False)
        self.assertNotEqual(refused.returncode, 0, "a stranger was answered over IPv6")
        self.assertEqual(self.vm2.stop(), 0)
        self.assertNotIn("::6/128", LAB.run("vm2", "ip", "-6", "addr", "show", "dev", "lo").stdout)

    def test_machines_that_are_known_by_ipv6_addresses_talk_over_ipv6(self):
        self.with_ipv6()
        self.serve("vm1")
        self.serve("vm2")
        for vm, ip in ((self.vm1, "fd99::11"), (self.vm2, "fd99::12")):
            vm.ip = ip
            vm.join("--set", f"workload.instanceIps=['{ip}']")
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        self.apply("""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: six, namespace: vms}
spec:
  hosts: [six.internal.com]
  addresses: ["fd99:ffff::1"]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  resolution: STATIC
  workloadSelector: {labels: {app: details-legacy}}
""")
        LAB.run("vm1", "ip", "-6", "route", "replace", "default", "dev", "eth0")
        self.addCleanup(LAB.run, "vm1", "ip", "-6", "route", "del", "default", "dev", "eth0")
        told = self.answers("http://six.internal.com/")
        self.assertEqual(told["name"], "vm2")
        self.assertIn("URI=spiffe://cluster.local/ns/vms/sa/client", told["headers"]["x-forwarded-client-cert"])

    def test_host_names_ports_by_name_locality_and_weight(self):
        self.serve("vm2")
        self.vm1.join().until_ready()
        path = LAB.directory / "kube-token"
        path.write_text(LAB.token("details-legacy", "https://kubernetes.default.svc"))
        self.vm2.join("--registration", "kubernetes", "--kube-server", "https://10.99.0.1:6443", "--kube-ca", LAB.server_ca, "--kube-token-file", path,
                      "--label", "app=details-legacy", "--locality", "eu/west/rack7", "--set", "workload.weight=7", "--set", "workload.ports={http: 9080}")
        self.vm2.until_ready()
        self.assertEqual(self.answers("http://details.internal.com/")["name"], "vm2")
        [(address, locality, weight)] = self.endpoints("outbound|80||details.internal.com")
        self.assertEqual(address["socket_address"]["port_value"], 9080)
        self.assertEqual((locality, weight), ({"region": "eu", "zone": "west", "sub_zone": "rack7"}, 7))
        # A Service of Kubernetes whose selector the machine's labels match.
        self.apply("""
apiVersion: v1
kind: Service
metadata: {name: legacy, namespace: vms}
spec:
  clusterIP: 10.96.7.7
  selector: {app: details-legacy}
  ports: [{name: http, port: 80, targetPort: 9080}]
""")
        for name in ("legacy", "legacy.vms", "legacy.vms.svc.cluster.local"):
            self.assertEqual(self.answers(f"http://{name}/")["name"], "vm2")

    def test_an_entry_may_have_a_host_name_and_a_socket_path(self):
        self.serve("vm2")
        self.vm1.join().until_ready()
        hosts = f"/etc/netns/{LAB.namespace('vm1')}/hosts"
        before = open(hosts, encoding="utf-8").read()
        self.addCleanup(lambda: open(hosts, "w", encoding="utf-8").write(before))
        with open(hosts, "a", encoding="utf-8") as file:
            file.write("10.99.0.12 vm2.example\n")
        path = LAB.directory / "kube-token"
        path.write_text(LAB.token("details-legacy", "https://kubernetes.default.svc"))
        command = self.vm2.join_command("--registration", "kubernetes", "--kube-server", "https://10.99.0.1:6443", "--kube-ca", LAB.server_ca,
                                        "--kube-token-file", path, "--label", "app=by-name")
        command[command.index("--address") + 1] = "vm2.example"
        self.vm2.process = LAB.start("vm2", *command, log="vm2.log")
        self.vm2.until_ready()
        self.assertEqual(LAB.entries()["vm2"]["spec"]["address"], "vm2.example")
        self.apply("""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: by-name, namespace: vms}
spec:
  hosts: [by-name.internal.com]
  addresses: [240.1.2.7]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  resolution: DNS
  workloadSelector: {labels: {app: by-name}}
""")
        self.vm1.until_ready()
        cluster = "outbound|80||by-name.internal.com"
        until("the entry's host name is in Envoy's cluster", lambda: "vm2.example" in self.vm1.admin("/config_dump?resource=dynamic_active_clusters"), limit=60)
        until("and is resolved", lambda: any(address.get("socket_address", {}).get("address") == "10.99.0.12" for address, _, _ in self.endpoints(cluster)), limit=60)
        self.assertEqual(self.answers("http://by-name.internal.com/")["name"], "vm2")
        self.vm2.stop()
        self.vm2.command("leave")
        socket = self.vm2.join_command("--registration", "kubernetes", "--kube-server", "https://10.99.0.1:6443", "--kube-ca", LAB.server_ca,
                                       "--kube-token-file", path, "--label", "app=by-socket")
        socket[socket.index("--address") + 1] = "unix:///run/legacy.sock"
        self.vm2.process = LAB.start("vm2", *socket, log="vm2.log")
        self.vm2.until_ready()
        self.assertEqual(LAB.entries()["vm2"]["spec"]["address"], "unix:///run/legacy.sock")
        self.apply("""
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: by-socket, namespace: vms}
spec:
  hosts: [by-socket.internal.com]
  addresses: [240.1.2.8]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP}]
  resolution: DNS
  workloadSelector: {labels: {app: by-socket}}
""")
        until("the socket's path is in Envoy's cluster", lambda: "/run/legacy.sock" in self.vm1.admin("/config_dump?resource=dynamic_active_clusters"), limit=60)
