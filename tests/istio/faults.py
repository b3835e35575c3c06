"""Processes that die, a control plane that is away, input that is wrong."""

import base64
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile

from case import LAB, Case, Traffic
from lab import until

#: An access log of the inbound listener, in a directory that a test makes later.
ACCESS_LOG = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: access-log, namespace: vms}
spec:
  workloadSelector: {labels: {app: details-legacy}}
  configPatches:
  - applyTo: LISTENER
    match: {context: SIDECAR_INBOUND, listener: {portNumber: 15006}}
    patch:
      operation: MERGE
      value:
        access_log:
        - name: envoy.access_loggers.file
          typed_config: {"@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: %s}
"""


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


class Rejections(Traffic):
    """Configuration that Envoy rejects is a condition, and takes effect by itself when the cause is gone."""

    def conditions(self, vm):
        return [one["what"] for one in vm.status().get("conditions", []) if one["room"] == "proxy-configuration"]

    def missing_directory(self):
        """The path of a directory that does not exist, where Envoy's user could write."""
        above = pathlib.Path(tempfile.mkdtemp(prefix="vm-agent-logs-"))
        above.chmod(0o755)
        self.addCleanup(shutil.rmtree, above, ignore_errors=True)
        return above / "logs"

    def log_to(self, directory):
        LAB.apply(ACCESS_LOG % f"{directory}/access.log")
        self.addCleanup(LAB.kubectl, "-n", "vms", "delete", "envoyfilter", "access-log", "--ignore-not-found")

    def test_an_access_log_in_a_missing_directory_is_said_and_opened_once_the_directory_is_there(self):
        directory = self.missing_directory()
        self.log_to(directory)
        self.vm2.join()
        said = until("the status says why", lambda: self.conditions(self.vm2))
        self.assertIn(f"unable to open file '{directory}/access.log': No such file or directory", said[0])
        until("join says why", lambda: "unable to open file" in self.vm2.log())
        self.assertFalse(self.vm2.status()["ready"])
        doctor = self.vm2.command("doctor")
        self.assertIn(f"create {directory}", doctor.stdout + doctor.stderr)
        directory.mkdir()
        directory.chmod(0o777)
        self.vm2.until_ready(limit=90)
        self.assertEqual(self.conditions(self.vm2), [])
        self.vm1.join().until_ready()
        self.assertTrue((directory / "access.log").exists())
        with self.traffic() as load:
            until("some requests were sent", lambda: load.good > 20)
        self.assertEqual(load.bad, [])

    def test_a_rejected_update_costs_no_request(self):
        directory = self.missing_directory()
        for vm in (self.vm1, self.vm2):
            vm.join().until_ready()
        with self.traffic() as load:
            self.log_to(directory)
            until("the status says why", lambda: self.conditions(self.vm2))
            self.assertTrue(self.vm2.status()["ready"])
            directory.mkdir()
            directory.chmod(0o777)
            until("it is accepted", lambda: not self.conditions(self.vm2), limit=90)
            # Envoy writes to it when a connection ends, and opens it when it accepts the listener.
            self.assertTrue((directory / "access.log").exists())
        self.assertEqual(load.bad, [])

    def test_a_port_that_another_program_held_is_used_once_it_is_free(self):
        self.vm1.join().until_ready()
        self.vm1.stop()
        self.vm1.end()
        holder = LAB.start("vm1", sys.executable, "-m", "http.server", "15006", log="holder.log")
        self.addCleanup(LAB.stop, holder)
        until("the port is held", lambda: LAB.run("vm1", "curl", "-s", "127.0.0.1:15006", check=False).returncode == 0)
        self.vm1.run()
        said = until("the status says why", lambda: self.conditions(self.vm1))
        self.assertIn("15006", said[0])
        self.assertIn("Address already in use", said[0])
        LAB.stop(holder)
        self.vm1.until_ready(limit=90)
        self.assertEqual(self.conditions(self.vm1), [])


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
        self.refused(4, "capture", args=["--set", "capture.mode=magic"])
        self.refused(4, "identity.ttl", args=["--set", "identity.ttl=soon"])
