"""The ladder of credentials against the real API server and istiod: what comes back alone after being off."""

import base64
import calendar
import json
import subprocess
import time

from case import LAB, Case
from lab import CONTROL_PLANE, until

#: The Role of docs/credentials.md, for the account `client`.
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: client-token, namespace: vms}
rules: [{apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [client], verbs: [create]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: client-token, namespace: vms}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: client-token}
subjects: [{kind: ServiceAccount, name: client, namespace: vms}]
---
apiVersion: v1
kind: Secret
metadata: {name: vm1, namespace: vms}
"""
ISSUER = "https://kubernetes.default.svc"
#: Seconds of life of the certificates: short, so that a machine is soon off for longer.
LIFE = 12


def seconds_until(moment):
    return calendar.timegm(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")) - time.time()


class Credential(Case):
    def setUp(self):
        super().setUp()
        LAB.apply(ROLE)

    def tearDown(self):
        super().tearDown()
        LAB.kubectl("-n", "vms", "delete", "--ignore-not-found", "role/client-token", "rolebinding/client-token", "secret/vm1")

    @property
    def state(self):
        return self.vm1.root / "var/lib/vm-agent"

    def join(self):
        """With a join directory, and a token for the API that lies where a bundle's lies."""
        kubernetes = {"server": f"https://{CONTROL_PLANE}:6443", "caFile": LAB.server_ca, "tokenFile": "kube-token"}
        sets = [f"registration.kubernetes.{name}={value}" for name, value in kubernetes.items()] + [f"identity.ttl={LIFE}s"]
        self.vm1.join(*(part for one in sets for part in ("--set", one)))
        return self.vm1.until_ready()

    def rung(self, status, name):
        return next(rung for rung in status["credential"]["rungs"] if rung["name"] == name)

    def off_past_the_certificate(self):
        status = self.vm1.status()
        self.assertEqual(self.vm1.stop(), 0)
        time.sleep(max(0, seconds_until(status["identity"]["not_after"])) + 1)

    def test_off_past_the_certificate_it_comes_back_with_a_token_of_the_api_server_until_that_is_taken_away(self):
        self.state.mkdir(parents=True, mode=0o700)
        bound = ["--bound-object-kind=Secret", "--bound-object-name=vm1"]
        token = LAB.kubectl("-n", "vms", "create", "token", "client", "--duration=10m", *bound)
        (self.state / "kube-token").write_text(token.stdout.strip())
        self.join()
        until("there is a token", lambda: self.rung(self.vm1.status(), "kubernetes")["state"] == "usable")
        self.off_past_the_certificate()
        (self.state / "istio-token").unlink()
        status = self.vm1.run().until_ready()
        self.assertEqual(self.rung(status, "token-file")["state"], "absent")
        self.assertGreater(self.rung(status, "kubernetes")["expires_in"], 80000, "a day, as was asked for")
        self.off_past_the_certificate()
        # What the bundle's token is bound to takes the tokens that were made with it along.
        LAB.kubectl("-n", "vms", "delete", "secret/vm1")
        self.vm1.run()
        def refused():
            return [one for one in self.vm1.status().get("conditions", []) if one["room"] == "identity"]
        trouble = until("it is refused", refused, limit=60)[0]
        self.assertIn("with the token of credential.kubernetes", trouble["what"])
        said = lambda: "Unauthorized" in json.dumps(self.rung(self.vm1.status(), "kubernetes"))
        until("the API server makes no other one", said)

    def test_the_token_for_the_api_is_replaced_before_it_ends_by_one_of_the_same_kind(self):
        self.state.mkdir(parents=True, mode=0o700)
        path = self.state / "kube-token"
        # The API server makes none for less than ten minutes: this one has lived for most of them.
        path.write_text(old := aged_token(made_ago=480, left=120))
        self.join()
        until("it has been replaced", lambda: path.read_text() != old)
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        until("it is known", lambda: self.vm1.status()["credential"]["kubernetes_api"]["expires_in"] > 500)
        claims = json.loads(decode(path.read_text().split(".")[1]))
        self.assertEqual((claims["aud"], claims["exp"] - claims["iat"]), ([ISSUER], 600))
        who = LAB.kubectl("--kubeconfig=/dev/null", f"--server=https://{CONTROL_PLANE}:6443", f"--certificate-authority={LAB.server_ca}",
                          "--token", path.read_text(), "auth", "whoami", "-o", "json")
        self.assertEqual(json.loads(who.stdout)["status"]["userInfo"]["username"], "system:serviceaccount:vms:client")


def encode(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def aged_token(made_ago, left, account="client", audience=ISSUER):
    """A token as the API server made it some time ago, signed with its own key."""
    uid = LAB.kubectl("-n", "vms", "get", "serviceaccount", account, "-o", "jsonpath={.metadata.uid}").stdout
    now = int(time.time())
    claims = {"aud": [audience], "iss": ISSUER, "iat": now - made_ago, "nbf": now - made_ago, "exp": now + left,
              "sub": f"system:serviceaccount:vms:{account}",
              "kubernetes.io": {"namespace": "vms", "serviceaccount": {"name": account, "uid": uid}}}
    body = f"{encode(json.dumps({'alg': 'RS256'}).encode())}.{encode(json.dumps(claims).encode())}"
    signed = subprocess.run(["openssl", "dgst", "-sha256", "-sign", LAB.directory / "pki/sa.key"], input=body.encode(), capture_output=True, check=True)
    return f"{body}.{encode(signed.stdout)}"
