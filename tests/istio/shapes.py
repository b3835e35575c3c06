"""Other shapes of the story: IPv6 and dual stack, host names, sockets, locality and weight, a Kubernetes Service."""

import json
import sys

from case import LAB, Traffic
from lab import CONTROL_PLANE, STORY, until

SERVICE_ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: %(name)s, namespace: vms}
spec:
  hosts: [%(name)s.internal.com]
  addresses: ["%(address)s"]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http, protocol: HTTP, targetPort: 9080}]
  resolution: %(resolution)s
  workloadSelector: {labels: {app: %(app)s}}
"""

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: legacy, namespace: vms}
spec:
  clusterIP: 10.96.7.7
  selector: {app: details-legacy}
  ports: [{name: http, port: 80, targetPort: 9080}]
"""


#: Carries whatever arrives at a socket to port 9080 of a machine.
TUNNEL = """
import os, socket, sys, threading

def carry(one, other):
    while data := one.recv(65536):
        other.sendall(data)
    other.shutdown(socket.SHUT_WR)

door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[1] + ".new")
door.listen(16)
os.chmod(sys.argv[1] + ".new", 0o666)
os.rename(sys.argv[1] + ".new", sys.argv[1])
while True:
    near = door.accept()[0]
    far = socket.create_connection((sys.argv[2], 9080))
    for pair in ((near, far), (far, near)):
        threading.Thread(target=carry, args=pair, daemon=True).start()
"""


class Shapes(Traffic):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def apply(self, text):
        LAB.apply(text)
        self.addCleanup(LAB.kubectl, "delete", "-f", "-", input=text)

    def endpoints(self, cluster):
        """What vm1's Envoy knows of a cluster's endpoints: address, locality, weight."""
        clusters = json.loads(self.vm1.admin("/clusters?format=json"))["cluster_statuses"]
        hosts = [host for one in clusters if one["name"] == cluster for host in one.get("host_statuses", [])]
        return [(host["address"], host.get("locality", {}), host.get("weight")) for host in hosts]

    def answers(self, url, caller="vm1"):
        until(f"{url} is answered", lambda: LAB.curl(caller, url)[0] == 200, limit=60, pause=0.3)
        return json.loads(LAB.curl(caller, url)[1])

    def ipv6(self, *names):
        for name in names:
            number = {"vm1": 11, "vm2": 12, "vm3": 13}[name]
            LAB.run(name, "ip", "-6", "addr", "replace", f"fd99::{number}/64", "dev", "eth0", "nodad")
            self.addCleanup(LAB.run, name, "ip", "-6", "addr", "del", f"fd99::{number}/64", "dev", "eth0")

    def join_by_kubernetes(self, address, *flags, source=None):
        path = LAB.directory / "kube-token"
        path.write_text(LAB.token("details-legacy", "https://kubernetes.default.svc"))
        command = self.vm2.join_command("--registration", "kubernetes", "--kube-server", f"https://{CONTROL_PLANE}:6443", "--kube-ca", LAB.server_ca,
                                        "--kube-token-file", path, *flags, source=source)
        command[command.index("--address") + 1] = address
        self.vm2.process = LAB.start("vm2", *command, log="vm2.log")
        self.vm2.until_ready()

    def test_dual_stack_is_captured_and_closed_in_both_families(self):
        self.ipv6("vm1", "vm2", "vm3")
        self.serve("vm2")
        open_to_all = lambda: LAB.run("vm3", "curl", "-s", "-m", "5", "http://[fd99::12]:9080/", check=False).returncode == 0
        self.assertTrue(open_to_all(), "before it joins, anybody may call it")
        self.vm1.join().until_ready()
        self.vm2.join().until_ready()
        self.assertEqual(self.answers("http://details.internal.com/")["name"], "vm2")
        self.assertFalse(open_to_all(), "a stranger was answered over IPv6")
        self.assertEqual(self.vm2.stop(), 0)
        self.assertNotIn("::6/128", LAB.run("vm2", "ip", "-6", "addr", "show", "dev", "lo").stdout)

    def test_machines_with_ipv6_addresses_talk_over_ipv6(self):
        self.ipv6("vm1", "vm2")
        self.serve("vm2")
        for vm, ip in ((self.vm1, "fd99::11"), (self.vm2, "fd99::12")):
            vm.ip = ip
            vm.join("--set", f"workload.instanceIps=['{ip}']")
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        self.apply(SERVICE_ENTRY % {"name": "six", "address": "fd99:ffff::1", "resolution": "STATIC", "app": "details-legacy"})
        LAB.run("vm1", "ip", "-6", "route", "replace", "default", "dev", "eth0")
        self.addCleanup(LAB.run, "vm1", "ip", "-6", "route", "del", "default", "dev", "eth0")
        told = self.answers("http://six.internal.com/")
        self.assertEqual(told["name"], "vm2")
        self.assertIn("URI=spiffe://cluster.local/ns/vms/sa/client", told["headers"]["x-forwarded-client-cert"])

    def test_ports_by_name_locality_weight_and_a_kubernetes_service(self):
        self.serve("vm2")
        self.vm1.join().until_ready()
        self.join_by_kubernetes(self.vm2.ip, "--label", "app=details-legacy", "--locality", "eu/west/rack7",
                                "--set", "workload.weight=7", "--set", "workload.ports={http: 9080}")
        self.assertEqual(self.answers("http://details.internal.com/")["name"], "vm2")
        [(address, locality, weight)] = self.endpoints("outbound|80||details.internal.com")
        self.assertEqual(address["socket_address"], {"address": self.vm2.ip, "port_value": 9080})
        self.assertEqual((locality, weight), ({"region": "eu", "zone": "west", "sub_zone": "rack7"}, 7))
        self.apply(SERVICE)
        for name in ("legacy", "legacy.vms", "legacy.vms.svc.cluster.local"):
            self.assertEqual(self.answers(f"http://{name}/")["name"], "vm2")

    def test_a_machine_known_by_a_host_name_is_called(self):
        self.serve("vm2")
        self.resolver({"vm2.example": self.vm2.ip})
        self.resolvers(f"nameserver {CONTROL_PLANE}\n")
        self.vm1.join().until_ready()
        self.join_by_kubernetes("vm2.example", "--label", "app=by-name")
        self.assertEqual(LAB.entries()["vm2"]["spec"]["address"], "vm2.example")
        self.apply(SERVICE_ENTRY % {"name": "by-name", "address": "240.1.2.7", "resolution": "DNS", "app": "by-name"})
        self.mutual(self.answers("http://by-name.internal.com/"))

    def test_a_machine_may_be_known_by_a_socket_and_is_called_through_it(self):
        LAB.kubectl("-n", "vms", "patch", "workloadgroup", "details-legacy", "--type=json", "-p", '[{"op": "remove", "path": "/spec/template/ports"}]')
        self.addCleanup(LAB.kubectl, "apply", "-f", STORY)
        source = LAB.configure("details-legacy", directory=LAB.directory / "join-without-ports")
        # The caller's proxy connects to a tunnel on its own machine, whose other end is the machine with the service.
        path = LAB.directory / "tunnel.sock"
        tunnel = LAB.start("cp", sys.executable, "-c", TUNNEL, path, self.vm2.ip, log="tunnel.log")
        self.addCleanup(path.unlink)
        self.addCleanup(LAB.stop, tunnel)
        until("the tunnel is open", path.exists)
        self.serve("vm2")
        self.vm1.join().until_ready()
        self.join_by_kubernetes(f"unix://{path}", "--label", "app=by-socket", source=source)
        self.assertEqual(LAB.entries()["vm2"]["spec"]["address"], f"unix://{path}")
        # istiod gives such an entry to services with the resolution DNS only, where Envoy does not use it; a call needs the endpoint in the ServiceEntry itself.
        self.apply(SERVICE_ENTRY % {"name": "by-label", "address": "240.1.2.8", "resolution": "DNS", "app": "by-socket"})
        until("the path is in Envoy's cluster", lambda: str(path) in self.vm1.admin("/config_dump?resource=dynamic_active_clusters"), limit=60)
        inline = f'endpoints: [{{address: "unix://{path}", serviceAccount: details-legacy}}]'
        entry = SERVICE_ENTRY % {"name": "by-socket", "address": "240.1.2.9", "resolution": "STATIC", "app": ""}
        self.apply(entry.replace("workloadSelector: {labels: {app: }}", inline))
        self.mutual(self.answers("http://by-socket.internal.com/"))

    def mutual(self, told):
        """vm2 answered, and over mutual TLS: plain calls are refused."""
        self.assertEqual(told["name"], "vm2")
        plain = LAB.run("vm3", "curl", "-s", "-m", "5", f"http://{self.vm2.ip}:9080/", check=False)
        self.assertNotEqual(plain.returncode, 0, "a plain call was answered")
