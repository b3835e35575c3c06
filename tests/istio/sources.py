"""Certificates from other sources than istiod carry the same traffic; a changed root is found again."""

import base64
import json
import subprocess
import threading

from case import LAB, Traffic
from lab import CONTROL_PLANE, until
from spire import Spire

SIGNER = "vm-agent.test/mesh"
#: Seconds of life of SPIRE's certificates.
SVID_LIFE = 30
#: What an account needs for certificates through the Kubernetes API, and to find a changed root.
RIGHTS = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: certificate-requests}
rules:
- {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests], verbs: [create, get, watch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: certificate-requests}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: certificate-requests}
subjects: [{kind: ServiceAccount, name: client, namespace: vms}, {kind: ServiceAccount, name: details-legacy, namespace: vms}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mesh-root, namespace: vms}
rules:
- {apiGroups: [""], resources: [configmaps], resourceNames: [istio-ca-root-cert], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mesh-root, namespace: vms}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mesh-root}
subjects: [{kind: ServiceAccount, name: client, namespace: vms}]
"""


class Signer:
    """Signs with the key of istiod's own authority, which every machine of the mesh trusts."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir(exist_ok=True)
        secret = json.loads(LAB.kubectl("-n", "istio-system", "get", "secret", "istio-ca-secret", "-o", "json").stdout)["data"]
        for name in ("ca-cert.pem", "ca-key.pem"):
            (directory / name).write_bytes(base64.b64decode(secret[name]))

    def openssl(self, *args, **options):
        return subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True, **options).stdout

    def sign(self, request, account):
        """A certificate (PEM) for a request (PEM)."""
        extensions = self.directory / f"{account}.ext"
        extensions.write_text(f"subjectAltName=critical,URI:spiffe://cluster.local/ns/vms/sa/{account}\nbasicConstraints=critical,CA:FALSE\n"
                              "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\n")
        return self.openssl("x509", "-req", "-CA", self.directory / "ca-cert.pem", "-CAkey", self.directory / "ca-key.pem", "-days", "1", "-sha256",
                            "-extfile", extensions, input=request)

    def pair(self, account):
        """A new key and its certificate, PEM."""
        key = self.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
        (self.directory / "new.key").write_bytes(key)
        request = self.openssl("req", "-new", "-key", self.directory / "new.key", "-subj", "/")
        return key, self.sign(request, account)

    def place(self, account, directory):
        """Writes a new pair where others read it, the certificate last."""
        directory.mkdir(exist_ok=True)
        key, certificate = self.pair(account)
        for name, content in (("bundle.pem", (self.directory / "ca-cert.pem").read_bytes()), ("key.pem", key), ("cert.pem", certificate)):
            (directory / f"{name}.new").write_bytes(content)
            (directory / f"{name}.new").rename(directory / name)


class Approver:
    """A person who approves every request, and the signer that then signs it."""

    def __init__(self, signer):
        self.signer, self.ending, self.approved = signer, threading.Event(), []
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.ending.wait(0.3):
            for request in requests():
                name = request["metadata"]["name"]
                if name not in self.approved:
                    self.approved.append(name)
                    self.approve(request, name)

    def approve(self, request, name):
        LAB.kubectl("certificate", "approve", name)
        account = request["spec"]["username"].rpartition(":")[2]
        certificate = self.signer.sign(base64.b64decode(request["spec"]["request"]), account)
        made = json.loads(LAB.kubectl("get", "csr", name, "-o", "json").stdout)
        made["status"]["certificate"] = base64.b64encode(certificate).decode()
        LAB.kubectl("replace", "--raw", f"/apis/certificates.k8s.io/v1/certificatesigningrequests/{name}/status", "-f", "-", input=json.dumps(made))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join(30)


def requests():
    return [one for one in json.loads(LAB.kubectl("get", "csr", "-o", "json").stdout)["items"] if one["spec"]["signerName"] == SIGNER]


class Sources(Traffic):
    def setUp(self):
        super().setUp()
        LAB.apply(RIGHTS)
        self.signer = Signer(LAB.directory / "signer")

    def kubernetes(self, vm):
        """The settings of the Kubernetes API, with a token of the machine's account."""
        token = LAB.directory / f"kube-token-{vm.name}"
        token.write_text(LAB.token(vm.group, "https://kubernetes.default.svc"))
        return settings({"registration.kubernetes.server": f"https://{CONTROL_PLANE}:6443", "registration.kubernetes.caFile": LAB.server_ca,
                         "registration.kubernetes.tokenFile": token})

    def kept_elsewhere(self, vm):
        """Where somebody else keeps a machine's certificate."""
        return LAB.directory / f"kept-{vm.name}"

    def story(self, source):
        """Both machines are who they are by this source."""
        code, body = LAB.curl("vm1", "http://details.internal.com/")
        seen = json.loads(body)["headers"]["x-forwarded-client-cert"]
        self.assertEqual(code, 200)
        self.assertIn("URI=spiffe://cluster.local/ns/vms/sa/client", seen)
        self.assertIn("By=spiffe://cluster.local/ns/vms/sa/details-legacy", seen)
        self.assertEqual(LAB.curl("vm1", "http://details.internal.com/secret")[0], 403)
        for vm in (self.vm1, self.vm2):
            self.assertEqual(vm.status()["identity"]["renewal"]["source"], source)
            self.assertIn(f"from {source}", vm.command("status").stdout)

    def own_serials(self, vm):
        return [serial for uri, serial in vm.certificates() if uri and uri.startswith("spiffe://")]

    def rotate_under_load(self):
        """New certificates reach Envoy on both machines, and no request is lost."""
        with self.traffic() as load:
            for vm in (self.vm1, self.vm2, self.vm1):
                before = self.own_serials(vm)
                self.signer.place(vm.group, self.kept_elsewhere(vm))
                until("Envoy has the new one", lambda: self.own_serials(vm) not in ([], before), limit=30)
        self.assertGreater(load.good, 3)
        self.assertEqual(load.bad, [])

    def test_requests_that_a_person_approves_through_kubernetes(self):
        for vm in (self.vm1, self.vm2):
            vm.join(*settings({"identity.source": "kubernetes", "identity.signerName": SIGNER}), *self.kubernetes(vm))
        waiting = lambda vm: [one for one in vm.status()["conditions"] if "waits for its approval" in one["what"]]
        for vm in (self.vm1, self.vm2):
            told = until("it says that it waits", lambda: waiting(vm))[0]
            self.assertRegex(told["hint"], rf"kubectl certificate approve vm-agent\.vms\.{vm.group}\.[0-9a-f]+")
        self.assertEqual(len(requests()), 2)
        with Approver(self.signer) as approver:
            for vm in (self.vm1, self.vm2):
                vm.until_ready()
        with self.traffic():
            self.story("kubernetes")
        self.assertEqual(len(approver.approved), 2)
        until("the finished requests are deleted", lambda: not requests())

    def test_files_that_somebody_else_replaces_under_load(self):
        for vm in (self.vm1, self.vm2):
            kept = self.kept_elsewhere(vm)
            self.signer.place(vm.group, kept)
            vm.join(*settings({"identity.source": "files", "identity.files.certFile": kept / "cert.pem", "identity.files.keyFile": kept / "key.pem"}))
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        self.rotate_under_load()
        self.story("files")

    def test_spire_whose_certificates_are_renewed_under_load(self):
        for vm in (self.vm1, self.vm2):
            spire = Spire(LAB, vm.name, self.signer.directory, f"spiffe://cluster.local/ns/vms/sa/{vm.group}", SVID_LIFE)
            self.addCleanup(spire.stop)
            spire.start()
            vm.join(*settings({"identity.source": "spiffe", "identity.spiffeSocket": f"unix://{spire.socket}"}))
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        with self.traffic() as load:
            for vm in (self.vm1, self.vm2):
                before = self.own_serials(vm)
                until("Envoy has the new one", lambda: self.own_serials(vm) not in ([], before), limit=3 * SVID_LIFE)
        self.assertGreater(load.good, 3)
        self.assertEqual(load.bad, [])
        self.story("spiffe")

    def test_a_root_that_changed_while_the_machine_was_off_is_found(self):
        clock = self.vm1.join(*self.kubernetes(self.vm1)).until_ready()["clock"]
        # The last answer counts, whoever gave it.
        self.assertIn(clock["measured_by"], ("istiod", "kubernetes-api"))
        self.assertLess(abs(clock["skew_ms"]), 3000)
        self.assertEqual(self.vm1.stop(), 0)
        root = self.new_root()
        # The old certificate is valid: istiod refuses it, and gives a new one for the token that is still good.
        self.vm1.run()
        status = self.vm1.until_ready()
        self.assertTrue(status["identity"]["renewal"]["roots_replaced_at"])
        self.assertEqual((self.vm1.root / "etc/vm-agent/root-cert.pem").read_text().split(), root.split())
        status = until("there is a certificate of the new root", lambda: [one for one in [self.vm1.status()] if one["identity"]["renewal"]["issued"]])[0]
        self.assertEqual(self.vm1.certificates()[0][0], "spiffe://cluster.local/ns/vms/sa/client")
        until("all is well", lambda: self.vm1.status()["ready"] and not self.vm1.status()["conditions"])


def settings(values):
    return [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
