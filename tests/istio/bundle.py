"""The operator's side: `bundle create`, joining with nothing but the bundle, and what the bundle's credential cannot do."""

import json

from case import LAB, Traffic
from lab import BIN, CONTROL_PLANE, STORY, until
from vm import AGENT

GROUP = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: details-bundle, namespace: vms}
spec:
  metadata: {labels: {app: details-legacy, version: v1}}
  template:
    serviceAccount: details-legacy
    ports: {http: 9080, tcp-echo: 9090}
    locality: eu/a/rack1
    weight: 7
  probe: {httpGet: {path: /, port: 9080, host: 127.0.0.1}, periodSeconds: 2}
"""
SERVER = f"https://{CONTROL_PLANE}:6443"

#: What the token of a machine of details-legacy must not do: arguments of kubectl.
FORBIDDEN = [
    "get secrets", "get secrets -n istio-system", "get pods", "get nodes", "get namespaces", "get services", "get serviceaccounts",
    "get configmaps", "get configmap kube-root-ca.crt", "get configmap istio -n istio-system", "get roles", "get rolebindings",
    "get workloadgroups", "get workloadgroup client", "delete workloadgroup details-bundle", "get serviceentries", "delete serviceentry details",
    "get workloadentries -n istio-system", "get workloadentries -A", "delete --raw /apis/networking.istio.io/v1/namespaces/vms/workloadentries", "get authorizationpolicies",
    "delete peerauthentication strict", "get validatingadmissionpolicies", "delete validatingadmissionpolicy vm-agent.vms.details-legacy",
    "delete validatingadmissionpolicybinding vm-agent.vms.details-legacy", "create token client", "create token default", "create token default -n istio-system",
    "create namespace mine", "create serviceaccount mine", "create configmap mine --from-literal=a=b", "create secret generic mine",
    "create role mine --verb=get --resource=pods", "create clusterrolebinding mine --clusterrole=cluster-admin --serviceaccount=vms:details-legacy",
    "create rolebinding mine --clusterrole=admin --serviceaccount=vms:details-legacy", "label workloadgroup details-bundle a=b",
    "get workloadentries --as=system:admin", "get certificatesigningrequests", "get events", "get leases -n kube-system", "get endpointslices",
]


class Bundle(Traffic):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")
        # Only what a bundle grants counts here.
        LAB.kubectl("-n", "vms", "delete", "rolebinding", "vm-agent-details")
        self.addCleanup(LAB.kubectl, "apply", "-f", STORY)
        self.addCleanup(self.forget)

    def forget(self):
        for group in ("client", "details-bundle"):
            LAB.kubectl("-n", "vms", "delete", "--ignore-not-found", "role,rolebinding", f"vm-agent-{group}")
        for account in ("client", "details-legacy"):
            LAB.kubectl("delete", "--ignore-not-found", "validatingadmissionpolicybinding,validatingadmissionpolicy", f"vm-agent.vms.{account}", f"vm-agent-tokens.vms.{account}")
        LAB.kubectl("-n", "vms", "delete", "secrets", "-l", "app.kubernetes.io/managed-by=vm-agent-operator")
        LAB.kubectl("-n", "vms", "delete", "--ignore-not-found", "workloadgroup", "details-bundle")
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def create(self, *args):
        made = LAB.run("cp", AGENT, "bundle", "create", *args, "-n", "vms", "--kubeconfig", LAB.kubeconfig, "--gateway", CONTROL_PLANE, check=False)
        self.assertEqual(made.returncode, 0, made.stderr)
        return made

    def bundles(self):
        """One for each group: one that exists, and one from a file."""
        client, details = LAB.directory / "client.bundle.yaml", LAB.directory / "details.bundle.yaml"
        group = LAB.directory / "details-bundle.yaml"
        group.write_text(GROUP)
        self.create("client", "-o", client)
        made = self.create("-f", group, "-o", details)
        self.assertIn(f"vm-agent join {details}", made.stderr)
        for file in (client, details):
            self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        until("the policies hold", lambda: "own service account" in self.steal("probe", "details-legacy").stderr)
        return client, details

    def kubectl_as(self, account, *args, **options):
        return LAB.kubectl("-n", "vms", f"--as=system:serviceaccount:vms:{account}", *args, check=False, **options)

    def steal(self, name, account):
        """As the account client, an entry that says that it is another account's."""
        entry = {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": name, "namespace": "vms"},
                 "spec": {"address": "10.99.0.99", "serviceAccount": account}}
        return self.kubectl_as("client", "create", "--dry-run=server", "-f", "-", input=json.dumps(entry))

    def with_token(self, vm, *args, **options):
        """kubectl with nothing but the machine's own token."""
        token = (vm.root / "var/lib/vm-agent/kube-token").read_text()
        ca = vm.root / "etc/vm-agent/kube-ca.pem"
        return LAB.run("cp", BIN / "kubectl", "--kubeconfig=/dev/null", "--server", SERVER, f"--certificate-authority={ca}", "--token", token,
                       *args, check=False, **options)

    def test_the_bundle_alone_brings_machines_into_the_story_and_the_entry_shows_every_field(self):
        client, details = self.bundles()
        self.vm1.join(source=client)
        self.vm2.join(source=details)
        self.serve("vm2")
        for vm in (self.vm1, self.vm2):
            status = vm.until_ready()
            self.assertEqual((status["registration"]["mode"], status["registration"]["phase"]), ("kubernetes", "registered"))
        call = lambda path="/": LAB.curl("vm1", f"http://details.internal.com{path}")
        until("the service answers by its name", lambda: call()[0] == 200, limit=90, pause=0.3)
        told = json.loads(call()[1])
        self.assertEqual(told["name"], "vm2")
        self.assertIn("URI=spiffe://cluster.local/ns/vms/sa/client", told["headers"]["x-forwarded-client-cert"])
        self.assertEqual(call("/secret")[0], 403)
        entries = LAB.entries()
        self.assertEqual(sorted(entries), ["vm1", "vm2"], "istiod registered nobody")
        spec = entries["vm2"]["spec"]
        self.assertEqual((spec["address"], spec["serviceAccount"]), ("10.99.0.12", "details-legacy"))
        self.assertEqual((spec["locality"], spec["weight"], spec["ports"]), ("eu/a/rack1", 7, {"http": 9080, "tcp-echo": 9090}))
        self.assertEqual((spec["labels"]["app"], spec["labels"]["version"]), ("details-legacy", "v1"))
        self.nobody_else_touches(entries["vm2"])
        self.its_token_does_nothing_else()

    def nobody_else_touches(self, before):
        """Another account of the same namespace, with the same kind of Role."""
        patch = lambda what: json.dumps({"spec": what})
        attempts = [
            ("with its own service account: client", ["patch", "workloadentry", "vm2", "--type=merge", "-p", patch({"address": "10.99.0.66"})]),
            ("is not of service account client", ["patch", "workloadentry", "vm2", "--type=merge", "-p", patch({"serviceAccount": "client"})]),
            ("is not of service account client", ["delete", "workloadentry", "vm2"]),
            ("with its own service account: client", ["patch", "workloadentry", "vm1", "--type=merge", "-p", patch({"serviceAccount": "details-legacy"})]),
        ]
        for words, attempt in attempts:
            refused = self.kubectl_as("client", *attempt)
            self.assertNotEqual(refused.returncode, 0, attempt)
            self.assertIn(words, refused.stderr)
        for account in ("details-legacy", "default", ""):
            self.assertIn("with its own service account: client", self.steal("stolen", account).stderr)
        self.assertEqual(self.steal("mine", "client").returncode, 0)
        # A Role that is too wide does not help either: the policy does not depend on it.
        LAB.kubectl("create", "clusterrole", "too-wide", "--verb=*", "--resource=workloadentries,workloadentries/status")
        self.addCleanup(LAB.kubectl, "delete", "clusterrole,clusterrolebinding", "too-wide")
        LAB.kubectl("create", "clusterrolebinding", "too-wide", "--clusterrole=too-wide", "--serviceaccount=vms:client")
        status = ["patch", "workloadentry", "vm1", "--subresource=status", "--type=merge", "-p", json.dumps({"status": {"observedGeneration": 9}})]
        until("the wide Role counts", lambda: "does not write the status" in self.kubectl_as("client", *status).stderr)
        other = {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "x", "namespace": "istio-system"},
                 "spec": {"address": "10.99.0.99", "serviceAccount": "client"}}
        elsewhere = LAB.kubectl("--as=system:serviceaccount:vms:client", "create", "-f", "-", input=json.dumps(other), check=False)
        self.assertIn("no WorkloadEntries in other namespaces", elsewhere.stderr)
        after = LAB.entries()["vm2"]
        self.assertEqual((after["spec"], after["metadata"]["uid"]), (before["spec"], before["metadata"]["uid"]))

    def its_token_does_nothing_else(self):
        self.assertEqual(self.with_token(self.vm2, "-n", "vms", "get", "workloadentry", "vm2").returncode, 0)
        self.assertEqual(self.with_token(self.vm2, "-n", "vms", "get", "workloadgroup", "details-bundle").returncode, 0)
        self.its_tokens_are_short_and_bound()
        for command in FORBIDDEN:
            words = command.split()
            namespace = [] if "-n" in words or "-A" in words else ["-n", "vms"]
            refused = self.with_token(self.vm2, *words, *namespace)
            self.assertNotEqual(refused.returncode, 0, command)
            self.assertIn("orbidden", refused.stderr, command)
        made = {"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": "mine", "namespace": "vms"},
                "spec": {"hosts": ["bank.example.com"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "NONE"}}
        self.assertIn("orbidden", self.with_token(self.vm2, "create", "-f", "-", input=json.dumps(made)).stderr)
        may = self.with_token(self.vm2, "-n", "vms", "auth", "can-i", "--list", "--no-headers").stdout
        ours = [line.split() for line in may.splitlines() if not line.startswith((" ", "self"))]
        self.assertEqual({line[0] for line in ours},
                         {"serviceaccounts/token", "configmaps", "workloadgroups.networking.istio.io", "workloadentries.networking.istio.io"}, may)

    def its_tokens_are_short_and_bound(self):
        secret = LAB.kubectl("-n", "vms", "get", "secrets", "-l", "app.kubernetes.io/managed-by=vm-agent-operator", "-o", "json").stdout
        secret = next(one["metadata"] for one in json.loads(secret)["items"] if one["metadata"]["annotations"]["vm-agent.io/workload-group"] == "details-bundle")
        bound = ["--bound-object-kind=Secret", f"--bound-object-name={secret['name']}", f"--bound-object-uid={secret['uid']}"]
        make = lambda *args: self.with_token(self.vm2, "-n", "vms", "create", "token", "details-legacy", *args)
        self.assertEqual(make(*bound, "--duration=12h").returncode, 0, make(*bound, "--duration=12h").stderr)
        for words, args in (("bound to the Secret", []), ("bound to the Secret", ["--duration=12h", "--audience=istio-ca"]),
                            ("at most 86400 seconds", [*bound, "--duration=87600h", "--audience=anything"]),
                            ("at most 86400 seconds", [*bound, "--duration=8760h"])):
            self.assertIn(words, make(*args).stderr, args)

    def write(self, account, change, metadata=None, operation="create"):
        """As a machine of this account, an entry with these fields over an honest one's; nothing is stored."""
        spec = {"address": "10.99.0.99", "serviceAccount": account, "labels": {"app": "details-legacy", "version": "v1"}, "weight": 7, **change}
        entry = {"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": {"name": "probe", "namespace": "vms", **(metadata or {})}, "spec": spec}
        return self.kubectl_as(account, operation, "--dry-run=server", "-f", "-", input=json.dumps(entry))

    def test_an_entry_has_its_groups_labels_a_weight_within_bounds_and_an_address_that_others_reach(self):
        self.bundles()
        write = lambda *args, **more: self.write("details-legacy", *args, **more)
        until("the policy holds", lambda: "labels of its WorkloadGroup" in write({"labels": {"app": "bank"}}).stderr)
        honest = write({})
        self.assertEqual(honest.returncode, 0, honest.stderr)
        names = {"service.istio.io/canonical-name": "details-legacy", "service.istio.io/canonical-revision": "v1"}
        self.assertEqual(write({"labels": {"app": "details-legacy", **names}}, {"labels": {"app": "details-legacy", "app.kubernetes.io/managed-by": "vm-agent"}}).returncode, 0)
        self.assertEqual(write({"address": "fd00::1"}).returncode, 0)
        for words, change, metadata in [
                ("labels of its WorkloadGroup", {"labels": {"app": "details-legacy", "team": "red"}}, {}),
                ("labels of its WorkloadGroup", {"labels": {"app": "client"}}, {}),
                ("labels of its WorkloadGroup", {}, {"labels": {"app": "client"}}),
                ("labels of its WorkloadGroup", {"labels": {"service.istio.io/canonical-name": "bank"}}, {}),
                ("the weight of these machines is at most 1000", {"weight": 4294967295}, {}),
                *(("an IP address that others reach", {"address": address}, {})
                  for address in ("169.254.169.254", "127.0.0.1", "::1", "fe80::1", "0.0.0.0", "224.0.0.1", "unix:///var/run/docker.sock", "bank.example.com")),
                ("sets no finalizers", {}, {"finalizers": ["example.com/stay"]})]:
            refused = write(change, metadata)
            self.assertNotEqual(refused.returncode, 0, (change, metadata))
            self.assertIn(words, refused.stderr, (change, metadata))

    def test_labels_and_host_names_that_the_operator_allows_are_the_machines_to_choose(self):
        self.create("client", "-o", LAB.directory / "free.yaml", "--allow-label", "zone", "--allow-host-names")
        write = lambda **change: self.write("client", {"labels": {"app": "client"}, **change})
        until("the policy holds", lambda: write(labels={"app": "client", "team": "red"}).returncode != 0)
        for change in ({}, {"labels": {"app": "client", "zone": "a"}}, {"address": "vm1.example.com"}):
            allowed = write(**change)
            self.assertEqual(allowed.returncode, 0, allowed.stderr)
        for address in ("localhost", "unix:///x", "127.0.0.1", "a b"):
            self.assertIn("or a host name", write(address=address).stderr, address)

    def test_a_label_that_somebody_else_gave_the_entry_does_not_stop_the_machine(self):
        _, details = self.bundles()
        self.serve("vm2")
        self.vm2.join(source=details).until_ready()
        LAB.kubectl("-n", "vms", "label", "workloadentry", "vm2", "team=red")
        removed = json.dumps([{"op": "remove", "path": "/spec/weight"}])
        LAB.kubectl("-n", "vms", "patch", "workloadentry", "vm2", "--type=json", "-p", removed)
        until("the agent has repaired it", lambda: LAB.entries()["vm2"]["spec"].get("weight") == 7)
        self.assertEqual(LAB.entries()["vm2"]["metadata"]["labels"]["team"], "red")

    def test_the_name_of_another_accounts_machine_is_refused_before_anything_changes(self):
        client, details = self.bundles()
        self.serve("vm2")
        self.vm2.join(source=details).until_ready()
        before = LAB.entries()["vm2"]
        for more in (["--dry-run"], []):
            command = self.vm1.join_command(*more, source=client)
            command[command.index("--name") + 1] = "vm2"
            refused = LAB.run("vm1", *command, check=False, timeout=90)
            self.assertEqual((refused.returncode, self.vm1.files()), (7, []), refused.stderr)
            self.assertIn("WorkloadEntry vms/vm2 belongs to another machine, at 10.99.0.12", refused.stderr)
            self.assertIn("another name with --name", refused.stderr)
        after = LAB.entries()["vm2"]
        self.assertEqual((after["spec"], after["metadata"]["uid"]), (before["spec"], before["metadata"]["uid"]))

    def test_a_machine_that_serves_is_not_taken_out_by_a_join_as_another_workload(self):
        client, details = self.bundles()
        self.vm1.join(source=client).until_ready()
        self.vm2.join(source=details).until_ready()
        pid = self.vm2.status()["pid"]
        with self.traffic() as load:
            for more in (["--dry-run"], []):
                refused = self.vm2.try_join(*more, source=client)
                self.assertEqual(refused.returncode, 7, refused.stderr)
                self.assertIn("joined as WorkloadGroup vms/details-bundle", refused.stderr)
                self.assertIn("`vm-agent leave` first", refused.stderr)
        self.assertEqual(load.bad, [])
        self.assertGreater(load.good, 0)
        after = self.vm2.status()
        self.assertEqual((after["pid"], after["ready"]), (pid, True))
        self.assertFalse((self.vm2.root / "var/lib/vm-agent/identity.json.corrupt").exists())

    def test_nothing_is_made_when_something_is_wrong_and_what_was_done_is_said(self):
        create = lambda *args: LAB.run("cp", AGENT, "bundle", "create", "client", "-n", "vms", "--kubeconfig", LAB.kubeconfig, "--gateway", CONTROL_PLANE,
                                       "-o", LAB.directory / "said.yaml", *args, check=False)
        failed = create("--istio-namespace", "nowhere")
        self.assertEqual(failed.returncode, 4, failed.stderr)
        self.assertIn("there is no ConfigMap nowhere/istio", failed.stderr)
        self.assertNotIn("vm-agent-client", LAB.kubectl("-n", "vms", "get", "role,rolebinding", "-o", "name").stdout)
        self.assertEqual(LAB.kubectl("get", "validatingadmissionpolicies", "-o", "name").stdout, "")
        said = lambda made: [line.split()[-1] for line in made.stderr.splitlines() if "vm-agent-client" in line or "vm-agent.vms.client" in line]
        self.assertEqual(set(said(create())), {"created"})
        self.assertEqual(set(said(create())), {"unchanged"})
        self.assertEqual(set(said(create("--name-prefix", "edge-"))), {"unchanged", "updated"})

    def test_a_revoked_bundle_is_said_and_a_fresh_one_mends_the_machine_under_its_name(self):
        _, details = self.bundles()
        shown = json.loads(LAB.run("cp", AGENT, "bundle", "inspect", details, "--json").stdout)
        self.assertEqual(shown["tokens"]["kubernetes"]["account"], "vms/details-legacy")
        self.assertNotIn("eyJ", json.dumps(shown))
        self.serve("vm2")
        self.vm2.join(source=details).until_ready()
        uid = LAB.entries()["vm2"]["metadata"]["uid"]
        self.assertEqual(self.vm2.stop(), 0)
        LAB.kubectl("-n", "vms", "delete", "secret", shown["secret"])
        # The API server remembers for some seconds whom it took.
        until("the token is refused", lambda: "nauthorized" in self.with_token(self.vm2, "-n", "vms", "get", "workloadentry", "vm2").stderr)
        command = self.vm2.join_command(source=details)
        at = command.index("--name")
        nameless = command[:at] + command[at + 2:]
        ended = LAB.run("vm2", *nameless, check=False, timeout=90)
        self.assertEqual(ended.returncode, 5, ended.stderr)
        self.assertIn("vm-agent bundle create details-bundle -n vms", ended.stderr)
        self.create("details-bundle", "-o", details)
        self.vm2.process = LAB.start("vm2", *nameless, log="vm2.log")
        self.vm2.until_ready()
        self.assertEqual(LAB.entries()["vm2"]["metadata"]["uid"], uid, "the registration is the same one")
        self.assertEqual(list(LAB.entries()), ["vm2"])

    def test_a_token_that_was_made_after_the_bundle_stays(self):
        _, details = self.bundles()
        self.serve("vm2")
        self.vm2.join(source=details).until_ready()
        self.assertEqual(self.vm2.stop(), 0)
        file = self.vm2.root / "var/lib/vm-agent/kube-token"
        renewed = LAB.kubectl("-n", "vms", "create", "token", "details-legacy", "--duration=48h").stdout.strip()
        file.write_text(renewed)
        self.vm2.join(source=details).until_ready()
        self.assertEqual(file.read_text(), renewed)

    def test_a_prefix_is_the_law_for_names(self):
        file = LAB.directory / "prefixed.yaml"
        self.create("client", "-o", file, "--name-prefix", "edge-")
        entry = lambda name: self.steal(name, "client")
        until("the policy holds", lambda: "begin with edge-" in entry("vm9").stderr)
        self.assertEqual(entry("edge-vm9").returncode, 0)
        refused = self.vm1.try_join(source=file)
        self.assertEqual((refused.returncode, self.vm1.files()), (4, []), refused.stderr)
        self.assertIn('names that begin with "edge-"', refused.stderr)

    def test_where_the_api_cannot_be_reached_istiod_registers(self):
        file = LAB.directory / "no-kubernetes.yaml"
        self.create("client", "-o", file, "--no-kubernetes")
        self.vm1.join(source=file)
        self.assertEqual(self.vm1.until_ready()["registration"]["mode"], "istiod")
        self.assertFalse((self.vm1.root / "var/lib/vm-agent/kube-token").exists())
        self.assertEqual(list(LAB.entries()), ["client-10.99.0.11"])

    def test_a_dry_run_makes_nothing_and_prints_what_kubectl_can_apply(self):
        printed = self.create("client", "--dry-run")
        count = lambda: len(LAB.kubectl("get", "validatingadmissionpolicies", "-o", "name").stdout.split())
        self.assertEqual(count(), 0)
        LAB.apply(printed.stdout)
        self.assertEqual(count(), 2)
        # What somebody with more rights applied is no obstacle, and nothing is made twice.
        self.create("client", "-o", LAB.directory / "again.yaml")
        self.create("client", "-o", LAB.directory / "again.yaml")
        self.assertEqual(count(), 2)
