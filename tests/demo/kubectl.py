"""The stock kubectl against the development mesh's Kubernetes API, on loopback: `make test-kubectl`.

Nothing here needs root, a cluster or a network. DEVMESH and KUBECTL name the two programs.
"""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).parents[2]
PEERS = pathlib.Path(os.environ.get("VM_AGENT_PEERS", pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "vm-agent/peers"))
DEVMESH = pathlib.Path(os.environ.get("DEVMESH", ROOT / "target/debug/vm-agent-devmesh"))
KUBECTL = pathlib.Path(os.environ.get("KUBECTL", PEERS / "bin/kubectl"))
STORY = ROOT / "tests/istio/story.yaml"
ENTRY = """
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: {name: vm1, namespace: vms}
spec: {address: 10.0.0.1}
"""


class Mesh:
    """A running mesh with a directory."""

    def __init__(self, state):
        self.state = state
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            [DEVMESH, "serve", "--state", self.state, "--istiod-port", "0", "--kube-port", "0", "--admin-port", "0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.about = json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(30)
        self.process.stdout.close()
        return status


class Kubectl(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="vm-agent-kubectl-")
        self.addCleanup(directory.cleanup)
        self.home = pathlib.Path(directory.name)
        self.mesh = Mesh(self.home / "state")
        self.addCleanup(self.mesh.stop)

    def command(self, *args):
        return [KUBECTL, *map(str, args)]

    def environment(self):
        return {**os.environ, "HOME": str(self.home), "KUBECONFIG": str(self.home / "state/kubeconfig"), "EDITOR": "sed -i s/10.0.0.1/10.0.0.2/"}

    def kubectl(self, *args, fails=False, text=None):
        """Runs it, and returns what it says; of a failure, its complaint."""
        made = subprocess.run(self.command(*args), input=text, capture_output=True, text=True, timeout=60, env=self.environment(), check=False)
        self.assertEqual(made.returncode != 0, fails, f"kubectl {' '.join(map(str, args))}: {made.stdout}{made.stderr}")
        return (made.stderr if fails else made.stdout + made.stderr).strip()

    def story(self):
        return self.kubectl("apply", "-f", STORY)

    def test_the_story_is_applied_unchanged_when_it_is_applied_again_and_in_both_ways(self):
        self.assertIn("serviceentry.networking.istio.io/details created", self.story())
        again = self.story().splitlines()
        self.assertEqual([line for line in again if not line.endswith(" unchanged")], [])
        applied = self.kubectl("apply", "--server-side", "--force-conflicts", "-f", STORY).splitlines()
        self.assertEqual([line for line in applied if not line.endswith(" serverside-applied")], [])

    def test_objects_are_listed_in_columns_as_yaml_and_by_selectors(self):
        self.story()
        lines = self.kubectl("-n", "vms", "get", "se").splitlines()
        self.assertEqual(lines[0].split(), ["NAME", "HOSTS", "LOCATION", "RESOLUTION", "AGE"])
        self.assertEqual(lines[2].split()[:4], ["details", '["details.internal.com"]', "MESH_INTERNAL", "STATIC"])
        self.kubectl("create", "-f", "-", text=ENTRY)
        self.assertEqual(self.kubectl("-n", "vms", "get", "we").split()[:5], ["NAME", "ADDRESS", "AGE", "vm1", "10.0.0.1"])
        self.assertIn("resolution: STATIC", self.kubectl("-n", "vms", "get", "serviceentry", "details", "-o", "yaml"))
        self.assertEqual(len(json.loads(self.kubectl("get", "wg", "-A", "-o", "json"))["items"]), 2)
        self.kubectl("-n", "vms", "label", "se", "details", "team=red")
        names = lambda *args: self.kubectl("-n", "vms", "get", "se", "-o", "name", *args).split()
        self.assertEqual(names("-l", "team=red"), ["serviceentry.networking.istio.io/details"])
        self.assertEqual(names("-l", "team notin (red)", "--field-selector", "metadata.name=echo"), ["serviceentry.networking.istio.io/echo"])
        self.assertIn("vms            Active", self.kubectl("get", "ns"))

    def test_objects_are_described_edited_patched_annotated_replaced_and_deleted(self):
        self.story()
        self.kubectl("create", "-f", "-", text=ENTRY)
        described = self.kubectl("-n", "vms", "describe", "we", "vm1")
        self.assertIn("Address:  10.0.0.1", described)
        self.assertRegex(described, r"Events: +<none>")
        address = lambda: self.kubectl("-n", "vms", "get", "we", "vm1", "-o", "jsonpath={.spec.address}")
        self.kubectl("-n", "vms", "edit", "we", "vm1")
        self.assertEqual(address(), "10.0.0.2")
        self.kubectl("-n", "vms", "patch", "we", "vm1", "--type=merge", "-p", '{"spec":{"address":"10.0.0.3"}}')
        self.assertEqual(address(), "10.0.0.3")
        self.kubectl("-n", "vms", "patch", "we", "vm1", "--type=json", "-p", '[{"op":"replace","path":"/spec/address","value":"10.0.0.4"}]')
        self.assertEqual(address(), "10.0.0.4")
        self.kubectl("-n", "vms", "annotate", "we", "vm1", "note=x")
        self.kubectl("-n", "vms", "wait", "we/vm1", "--for=jsonpath={.spec.address}=10.0.0.4", "--timeout=10s")
        self.kubectl("replace", "-f", "-", text=ENTRY)
        self.assertEqual(address(), "10.0.0.1")
        self.assertIn("created (server dry run)", self.kubectl("apply", "--dry-run=server", "-f", "-", text=ENTRY.replace("vm1", "vm2")))
        self.assertIn("deleted", self.kubectl("-n", "vms", "delete", "we", "vm1"))
        self.assertIn("No resources found", self.kubectl("get", "we", "-A"))
        self.kubectl("delete", "ns", "vms")
        self.assertIn("No resources found", self.kubectl("get", "se,ap,pa", "-A"))

    def test_errors_are_said_as_kubernetes_says_them(self):
        self.story()
        say = lambda *args, **more: self.kubectl(*args, fails=True, **more)
        self.assertEqual(say("-n", "vms", "get", "we", "none"), 'Error from server (NotFound): workloadentries.networking.istio.io "none" not found')
        self.assertIn('strict decoding error: unknown field "spec.colour"', say("apply", "-f", "-", text=ENTRY.replace("{address", "{colour: red, address")))
        self.assertIn('spec.address in body must be of type string: "number"', say("apply", "-f", "-", text=ENTRY.replace("10.0.0.1", "7")))
        self.assertIn('namespaces "none" not found', say("apply", "-f", "-", text=ENTRY.replace("vms", "none")))
        self.kubectl("create", "-f", "-", text=ENTRY)
        self.assertIn('(AlreadyExists): error when creating "STDIN": workloadentries.networking.istio.io "vm1" already exists', say("create", "-f", "-", text=ENTRY))
        self.assertIn("application/strategic-merge-patch+json is not supported", say("-n", "vms", "patch", "we", "vm1", "--type=strategic", "-p", "{}"))
        self.assertIn('unknown field "spec.rules[0].when"', say("apply", "-f", "-", text=(
            "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: p, namespace: vms}, spec: {rules: [{when: [{key: x}]}]}}")))

    def test_accounts_get_tokens_and_may_do_what_their_roles_say(self):
        self.story()
        self.kubectl("-n", "vms", "create", "sa", "bob")
        token = self.kubectl("-n", "vms", "create", "token", "details-legacy", "--duration=20m")
        whoami = self.kubectl("auth", "whoami", "-o", "json")
        self.assertEqual(json.loads(whoami)["status"]["userInfo"]["username"], "admin")
        self.assertEqual(self.kubectl("auth", "can-i", "delete", "secrets", "-A"), "yes")
        # Without the administrator's token the other one counts.
        config = json.loads((self.home / "state/kubeconfig").read_text())
        config["users"][0]["user"]["token"] = token
        own = self.home / "own"
        own.write_text(json.dumps(config))
        may = lambda *args, fails=False: self.kubectl("--kubeconfig", own, "-n", "vms", *args, fails=fails)
        self.assertEqual(may("auth", "can-i", "create", "workloadentries"), "yes")
        self.assertEqual(json.loads(may("auth", "whoami", "-o", "json"))["status"]["userInfo"]["username"], "system:serviceaccount:vms:details-legacy")
        self.assertIn('User "system:serviceaccount:vms:details-legacy" cannot list resource "secrets"', may("get", "secrets", fails=True))
        self.kubectl("-n", "vms", "delete", "sa", "details-legacy")
        self.assertIn("You must be logged in to the server", may("get", "we", fails=True))

    def test_a_watch_follows_changes_and_a_new_one_begins_after_a_restart(self):
        self.story()
        self.kubectl("create", "-f", "-", text=ENTRY)
        for _ in range(2):
            # The second time, after a restart, with the same objects and the same administrator.
            watch = subprocess.Popen(self.command("-n", "vms", "get", "we", "-w", "-o", "jsonpath={.spec.address}{\"\\n\"}"), stdout=subprocess.PIPE, text=True, env=self.environment())
            self.assertEqual(watch.stdout.readline().strip(), "10.0.0.1")
            self.kubectl("-n", "vms", "patch", "we", "vm1", "--type=merge", "-p", '{"spec":{"address":"10.0.0.9"}}')
            self.assertEqual(watch.stdout.readline().strip(), "10.0.0.9")
            watch.terminate()
            watch.wait(10)
            watch.stdout.close()
            self.kubectl("-n", "vms", "patch", "we", "vm1", "--type=merge", "-p", '{"spec":{"address":"10.0.0.1"}}')
            before = self.kubectl("-n", "vms", "get", "we", "vm1", "-o", "jsonpath={.metadata.uid} {.metadata.resourceVersion}")
            self.assertEqual(self.mesh.stop(), 0)
            self.mesh.start()
            self.assertEqual(self.kubectl("-n", "vms", "get", "we", "vm1", "-o", "jsonpath={.metadata.uid} {.metadata.resourceVersion}"), before)


if __name__ == "__main__":
    for program, how in ((DEVMESH, "cargo build --features devmesh"), (KUBECTL, "tests/istio/peers.sh, or KUBECTL=path")):
        if not program.exists():
            raise SystemExit(f"{program} is missing: {how}")
    unittest.main(verbosity=2)
