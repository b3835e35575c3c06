"""The tier "real control plane": vm-agent against the real istiod, kube-apiserver and Envoy.

Run it with `make test-istio`. Every wait has a limit; nothing is retried.
"""

import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

from lab import CONTROL_PLANE, Lab, until
from vm import AGENT, ENVOY, Vm

#: Seconds of life of the certificates in the renewal tests; the product's promise is tried with 60.
SHORT_LIFE = int(os.environ.get("VM_AGENT_SHORT_LIFE", "16"))
RENEWALS = 10
LAB = None


def setUpModule():
    global LAB
    LAB = Lab()
    LAB.up()
    LAB.story()
    for name, ip in (("vm1", "10.99.0.11"), ("vm2", "10.99.0.12")):
        LAB.vm(name, ip)


def tearDownModule():
    LAB.down()


class Case(unittest.TestCase):
    def setUp(self):
        self.vm1 = Vm(LAB, "vm1", "10.99.0.11", "client")
        self.vm2 = Vm(LAB, "vm2", "10.99.0.12", "details-legacy")

    def tearDown(self):
        for vm in (self.vm1, self.vm2):
            vm.reset()
            LAB.run(vm.name, "nft", "flush", "ruleset", check=False)

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        outcome = super().run(result)
        if len(result.failures) + len(result.errors) > before:
            for vm in (self.vm1, self.vm2):
                print(f"--- the last of {vm.name}'s log ---\n{vm.log()[-3000:]}", file=sys.stderr)
        return outcome

    def no_entries(self):
        # After its own restart istiod looks for machines that are gone only every 100 seconds.
        until("istiod has removed the entries", lambda: not LAB.entries(), limit=180, pause=0.3)


class Joining(Case):
    def test_two_machines_join_by_istiods_registration(self):
        self.vm1.join()
        self.vm2.join()
        for vm in (self.vm1, self.vm2):
            status = vm.until_ready()
            identity = f"spiffe://cluster.local/ns/vms/sa/{vm.group}"
            self.assertEqual(vm.health_page(), 200)
            entry = LAB.entries()[f"{vm.group}-{vm.ip}"]["spec"]
            self.assertEqual((entry["address"], entry["serviceAccount"]), (vm.ip, vm.group))
            self.assertEqual(entry["labels"]["app"], vm.group)
            self.assertIn(identity, [uri for uri, _ in vm.certificates()])
            counts = vm.stats("update_(success|rejected)")
            self.assertGreater(counts["cluster_manager.cds.update_success"], 0)
            self.assertGreater(counts["listener_manager.lds.update_success"], 0)
            self.assertEqual([name for name, count in counts.items() if name.endswith("rejected") and count], [])
            self.assertIn("outbound|80||details.internal.com", vm.admin("/clusters"), "its configuration is istiod's")
            self.assertEqual((status["identity"]["id"], status["identity"]["valid"]), (identity, True))
            self.assertEqual(status["registration"]["name"], f"{vm.group}-{vm.ip}")
            self.assertEqual((status["control_plane"]["phase"], status["control_plane"]["rejected"]), ("connected", 0))
            self.assertEqual((status["proxy"]["phase"], status["conditions"]), ("ready", []))
            self.assertEqual(vm.command("wait", "--for", "ready", "--timeout", "5s").returncode, 0)
            self.assertIn(identity, vm.command("cert", "show", check=True).stdout)
            metrics = LAB.curl(vm.name, "http://127.0.0.1:15020/stats/prometheus", user=0)[1]
            self.assertIn('istio_agent_cert_expiry_seconds{resource_name="default"}', metrics)

    def test_envoy_runs_as_its_own_user_without_our_environment(self):
        status = self.vm1.join().until_ready()
        proc = f"/proc/{status['proxy']['pid']}"
        with open(f"{proc}/status", encoding="utf-8") as file:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        self.assertEqual(fields["Uid"].split()[0], "1337")
        self.assertEqual((fields["Groups"].strip(), fields["NoNewPrivs"]), ("", "1"))
        with open(f"{proc}/environ", encoding="utf-8") as file:
            self.assertEqual([one.split("=")[0] for one in file.read().split("\0") if one], ["PATH"])
        secret = subprocess.run(["find", self.vm1.root, "-name", "identity.json", "-perm", "600"], capture_output=True, text=True)
        self.assertIn("identity.json", secret.stdout)

    def test_the_machine_chooses_the_address_of_its_route_to_istiod(self):
        command = self.vm1.join_command()
        at = command.index("--address")
        self.vm1.process = LAB.start("vm1", *command[:at], *command[at + 2:], log="vm1.log")
        self.assertEqual(self.vm1.until_ready()["workload"]["address"], "10.99.0.11")

    def test_sigterm_drains_and_leaves_nothing_behind(self):
        self.vm1.join().until_ready()
        self.assertEqual(self.vm1.stop(), 0, self.vm1.log()[-2000:])
        self.assertEqual(LAB.pids("vm1"), [])
        self.assertFalse((self.vm1.root / "run/vm-agent").exists())
        self.no_entries()

    def test_a_second_join_with_the_same_source_is_harmless_and_a_running_agent_is_said(self):
        self.vm1.join().until_ready()
        again = self.vm1.try_join()
        self.assertEqual(again.returncode, 10, again.stderr)
        self.assertEqual(self.vm1.stop(), 0)
        self.vm1.join().until_ready()
        self.assertIn("unchanged below", self.vm1.log())

    def test_leave_removes_everything(self):
        self.vm1.join().until_ready()
        left = self.vm1.command("leave")
        self.assertEqual(left.returncode, 0, left.stderr)
        self.assertEqual((self.vm1.process.wait(30), self.vm1.files(), LAB.pids("vm1")), (0, [], []))


class Kubernetes(Case):
    def setUp(self):
        super().setUp()
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def flags(self, token="kube-token", account="details-legacy"):
        path = LAB.directory / token
        path.write_text(LAB.token(account, "https://kubernetes.default.svc"))
        return ["--registration", "kubernetes", "--kube-server", f"https://{CONTROL_PLANE}:6443", "--kube-ca", LAB.server_ca,
                "--kube-token-file", path]

    def test_the_entry_has_every_field_and_leave_removes_it(self):
        self.vm2.join(*self.flags(), "--network", "", "--locality", "eu/a/rack1", "--label", "version=v1",
                      "--set", "workload.weight=7", "--set", "workload.ports.admin=9901")
        status = self.vm2.until_ready()
        self.assertEqual((status["registration"]["mode"], status["registration"]["phase"]), ("kubernetes", "registered"))
        entry = LAB.entries()["vm2"]
        self.assertEqual(entry["spec"]["address"], "10.99.0.12")
        self.assertEqual((entry["spec"]["serviceAccount"], entry["spec"]["locality"], entry["spec"]["weight"]), ("details-legacy", "eu/a/rack1", 7))
        self.assertEqual(entry["spec"]["ports"], {"http": 9080, "admin": 9901})
        self.assertEqual((entry["spec"]["labels"]["app"], entry["spec"]["labels"]["version"]), ("details-legacy", "v1"))
        self.assertEqual(list(LAB.entries()), ["vm2"], "istiod made no second one")
        left = self.vm2.command("leave")
        self.assertEqual(left.returncode, 0, left.stderr)
        self.assertEqual((LAB.entries(), self.vm2.files(), LAB.pids("vm2")), ({}, [], []))

    def test_a_network_is_registered_too(self):
        self.vm2.join(*self.flags(), "--network", "vm-network").until_ready()
        self.assertEqual(LAB.entries()["vm2"]["spec"]["network"], "vm-network")
        self.assertEqual(self.vm2.command("leave").returncode, 0)

    def test_an_entry_is_removed_on_stop_where_that_is_asked_for(self):
        self.vm2.join(*self.flags(), "--set", "registration.removeOnStop=true").until_ready()
        self.assertEqual(self.vm2.stop(), 0)
        self.assertEqual(LAB.entries(), {})

    def test_a_refusal_by_rbac_says_which_role_is_missing_and_undoes_the_join(self):
        refused = self.vm1.try_join(*self.flags(account="client"))
        self.assertEqual(refused.returncode, 7, refused.stderr)
        self.assertIn("Forbidden", refused.stderr)
        self.assertIn("a Role with verbs", refused.stderr)
        self.assertEqual(self.vm1.files(), [])


class Traffic(Case):
    """What the tests with requests through the mesh share."""

    def capture(self):
        """Before anything connects: a rule that comes later would catch half-open connections."""
        for vm in ("vm1", "vm2"):
            LAB.capture(vm)

    def traffic(self):
        """A legacy server on vm2, and a new connection from vm1 through both Envoys per request."""
        www = LAB.directory / "www"
        www.mkdir(exist_ok=True)
        (www / "index.html").write_text("details")
        LAB.start("vm2", sys.executable, "-m", "http.server", "9080", "--bind", "0.0.0.0", log="server.log", cwd=www)
        call = lambda: LAB.curl("vm1", "-H", "Host: details.internal.com", "http://240.1.2.3/")
        until("the story works", lambda: call()[0] == 200, limit=90)
        return Load(call)


class Renewal(Traffic):
    def test_ten_renewals_reach_envoy_and_no_request_is_refused(self):
        self.capture()
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
        self.capture()
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
        self.capture()
        self.vm1.join()
        self.vm2.join()
        self.vm1.until_ready()
        self.vm2.until_ready()
        with self.traffic():
            pass
        arrived = LAB.directory / "arrived"
        arrived.unlink(missing_ok=True)
        LAB.start("vm2", sys.executable, "-c", SLOW_SERVER, arrived, log="slow.log")
        until("the slow server listens", lambda: LAB.run("vm2", "curl", "-s", "127.0.0.1:9081/quick", check=False).returncode == 0)
        found = []
        asking = threading.Thread(target=lambda: found.append(LAB.curl("vm1", "-H", "Host: slow.internal.com", "http://240.1.2.4/slow")))
        LAB.apply(SLOW_SERVICE)
        until("the slow service is known", lambda: LAB.curl("vm1", "-H", "Host: slow.internal.com", "http://240.1.2.4/quick")[0] == 200, limit=30)
        asking.start()
        until("the request has arrived", arrived.exists)
        self.assertEqual(self.vm2.stop(), 0)
        asking.join(30)
        self.assertEqual([code for code, _ in found], [200], self.vm2.log()[-2000:])


SLOW_SERVER = """
import http.server, pathlib, sys, time

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            pathlib.Path(sys.argv[1]).touch()
            time.sleep(2)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

http.server.ThreadingHTTPServer(("0.0.0.0", 9081), Handler).serve_forever()
"""

SLOW_SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: slow, namespace: vms}
spec:
  hosts: [slow.internal.com]
  addresses: [240.1.2.4]
  location: MESH_INTERNAL
  ports: [{number: 80, name: http-slow, protocol: HTTP, targetPort: 9081}]
  resolution: STATIC
  workloadSelector: {labels: {app: details-legacy}}
"""


class Load:
    """Requests one after the other, in a thread."""

    def __init__(self, call):
        self.call, self.good, self.bad, self.ending = call, 0, [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.ending.is_set():
            code, body = self.call()
            if code == 200:
                self.good += 1
            else:
                self.bad.append((time.strftime("%H:%M:%S"), code, body[:200]))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join(30)


class Faults(Case):
    def test_a_killed_envoy_is_back_and_configured(self):
        first = self.vm1.join().until_ready()["proxy"]["pid"]
        os.kill(first, signal.SIGKILL)
        until("another process", lambda: self.vm1.status()["proxy"]["pid"] not in (None, first))
        after = self.vm1.until_ready()
        self.assertEqual(after["proxy"]["restarts"], 1)
        self.assertIn("outbound|80||details.internal.com", self.vm1.admin("/clusters"))

    def test_an_envoy_killed_while_istiod_is_away_is_configured_when_it_is_back(self):
        first = self.vm1.join().until_ready()["proxy"]["pid"]
        LAB.istiod_stop()
        try:
            os.kill(first, signal.SIGKILL)
            until("another process", lambda: self.vm1.status()["proxy"]["pid"] not in (None, first))
            until("the status says why it waits", lambda: any(one["room"] == "control-plane" for one in self.vm1.status()["conditions"]))
        finally:
            LAB.istiod_start()
        self.vm1.until_ready()

    def test_istiod_away_at_the_start_is_waited_for_and_said(self):
        LAB.istiod_stop()
        try:
            self.vm1.join()
            found = until("the status says so", lambda: self.vm1.status().get("conditions"), limit=60)
            self.assertIn("istiod.istio-system.svc:15012", found[0]["what"])
            self.assertFalse(self.vm1.status()["ready"])
        finally:
            LAB.istiod_start()
        self.vm1.until_ready()

    def test_a_killed_agent_starts_again_with_its_kept_identity_and_one_envoy(self):
        before = self.vm1.join().until_ready()
        os.kill(before["pid"], signal.SIGKILL)
        self.vm1.process.wait()
        self.vm1.run()
        after = self.vm1.until_ready()
        self.assertEqual(after["identity"]["serial"], before["identity"]["serial"])
        envoys = [pid for pid in LAB.pids("vm1") if "--drain-strategy" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]
        self.assertEqual(envoys, [after["proxy"]["pid"]])


class BadInput(Case):
    def refused(self, exit_status, *words, args=(), source=None):
        """The join fails with this status and these words, and the machine is as it was."""
        ended = self.vm1.try_join(*args, source=source)
        self.assertEqual(ended.returncode, exit_status, ended.stderr)
        for word in words:
            self.assertIn(word, ended.stderr)
        self.assertIn("error:", ended.stderr)
        self.assertEqual((self.vm1.files(), LAB.pids("vm1")), ([], []))

    def source(self, **files):
        """The join directory of `client` with other contents of some files."""
        copy = LAB.directory / "changed"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(LAB.join_directory("client"), copy)
        for name, content in files.items():
            (copy / {"token": "istio-token", "root": "root-cert.pem", "env": "cluster.env", "mesh": "mesh.yaml", "hosts": "hosts"}[name]).write_text(content)
        return copy

    def test_tokens_that_cannot_work_are_said_before_they_are_sent(self):
        payload = base64.urlsafe_b64encode(json.dumps({"aud": ["istio-ca"], "exp": 1700000000}).encode()).decode().rstrip("=")
        self.refused(5, "expired at 2023-11-14", "hint:", source=self.source(token=f"e30.{payload}.c2ln"))
        self.refused(5, "audience https://kubernetes.default.svc", source=self.source(token=LAB.token("client", "https://kubernetes.default.svc")))
        self.refused(5, "vms/details-legacy", source=self.source(token=LAB.token("details-legacy", "istio-ca")))
        self.refused(5, "not a JSON Web Token", source=self.source(token="rubbish"))

    def test_a_token_that_istiod_refuses_ends_the_join_with_its_words(self):
        token = LAB.token("client", "istio-ca")
        forged = token[:-8] + ("AAAAAAAA" if not token.endswith("AAAAAAAA") else "BBBBBBBB")
        ended = self.vm1.try_join(source=self.source(token=forged))
        self.assertIn(ended.returncode, (5, 6), ended.stderr)
        self.assertIn("hint:", ended.stderr)
        self.assertEqual((self.vm1.files(), LAB.pids("vm1")), ([], []))

    def test_a_control_plane_that_is_not_ours_is_refused(self):
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "/dev/null",
                        "-out", LAB.directory / "other.pem", "-subj", "/O=other", "-days", "2"], check=True, capture_output=True)
        other = (LAB.directory / "other.pem").read_text()
        self.refused(6, "not signed by a root", "hint:", source=self.source(root=other))
        self.refused(6, "does not resolve", "mesh.connectTo", args=["--set", "mesh.connectTo=no-such-host.invalid"])
        self.refused(6, "is not for other.example", args=["--set", "mesh.serverName=other.example"])
        self.refused(4, "root-cert.pem: it holds no certificate", source=self.source(root="rubbish"))

    def test_a_missing_workload_group_is_named(self):
        env = (LAB.join_directory("client") / "cluster.env").read_text().replace("AUTO_REGISTER_GROUP='client'", "AUTO_REGISTER_GROUP='nobody'")
        mesh = (LAB.join_directory("client") / "mesh.yaml").read_text().replace("AUTO_REGISTER_GROUP: client", "AUTO_REGISTER_GROUP: nobody")
        self.refused(7, "WorkloadGroup", "nobody", "hint:", source=self.source(env=env, mesh=mesh))

    def test_a_proxy_that_cannot_run_is_said(self):
        self.refused(8, "No such file", "--proxy-binary", args=["--set", "proxy.binary=/no/such/envoy"])
        self.refused(8, "not executable", args=["--set", "proxy.binary=/etc/hosts"])
        dying = LAB.directory / "dying-envoy"
        dying.write_text("#!/bin/sh\n[ \"$1\" = --version ] && echo 'version: x/0/y' && exit 0\necho cannot work here >&2\nexit 1\n")
        dying.chmod(0o755)
        self.refused(8, "cannot work here", args=["--set", f"proxy.binary={dying}"])

    def test_a_port_in_use_is_named(self):
        holder = LAB.start("vm1", sys.executable, "-m", "http.server", "15021", log="holder.log")
        try:
            until("the port is held", lambda: LAB.run("vm1", "curl", "-s", "127.0.0.1:15021", check=False).returncode == 0)
            ended = self.vm1.try_join()
            self.assertEqual((ended.returncode, self.vm1.files()), (9, []), ended.stderr)
            self.assertIn("port 15021", ended.stderr)
        finally:
            LAB.stop(holder)

    def test_files_that_are_cut_off_or_contradict_each_other_are_named_with_their_line(self):
        env = (LAB.join_directory("client") / "cluster.env").read_text()
        mesh = (LAB.join_directory("client") / "mesh.yaml").read_text()
        self.refused(4, "cluster.env:", "a single quote is not closed", source=self.source(env=env.rstrip()[:-1]))
        self.refused(4, "mesh.yaml", source=self.source(mesh=mesh[:40]))
        self.refused(4, "POD_NAMESPACE", "mesh.yaml:", 'says "vms"', source=self.source(env=env.replace("POD_NAMESPACE='vms'", "POD_NAMESPACE='prod'")))
        self.refused(4, "does not exist", source=LAB.directory / "nowhere")
        self.refused(4, "capture", args=["--set", "capture.mode=nftables"])
        self.refused(4, "identity.ttl", args=["--set", "identity.ttl=soon"])


if __name__ == "__main__":
    # The lab is taken down when the program ends; without this a SIGTERM would end it before that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"agent {AGENT}, Envoy {ENVOY}", file=sys.stderr)
    unittest.main(verbosity=2)
