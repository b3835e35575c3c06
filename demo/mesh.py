"""The mesh of the demonstration: the embedded one, with what it takes to do without kubectl."""

import json
import pathlib
import re
import shutil
import subprocess

from devmesh import DEVMESH, DevmeshLab
from lab import BIN, CONTROL_PLANE, until

KUBERNETES, ADMIN = f"https://{CONTROL_PLANE}:6443", f"http://{CONTROL_PLANE}:8080"
#: The groups of the story, for which join directories are made.
GROUPS = ("client", "details-legacy")


class Mesh(DevmeshLab):
    """`ttl` is how long certificates live."""

    def __init__(self, ttl, **options):
        super().__init__(**options)
        self.ttl = ttl
        joins = [f"--join=vms/{group}={self.join_directory(group)}" for group in GROUPS]
        self.arguments = ("--cert-ttl", ttl, "--grace", "5s", "--status-port", "15020", *joins)

    def up(self):
        if not DEVMESH.exists():
            raise SystemExit(f"{DEVMESH} is not there: run make demo, which builds it")
        self._add_network()
        self.kubeconfig = self.directory / "state/kubeconfig"
        self.istiod_start()

    def istiod_start(self):
        self.istiod_process = self.start("cp", DEVMESH, "serve", "--state", self.directory / "state", "--listen", CONTROL_PLANE, *self.arguments, log="devmesh.log")

        def told():
            if self.istiod_process.poll() is not None:
                raise SystemExit(f"the mesh ended with {self.istiod_process.returncode}: {self.log('devmesh.log')}")
            return "\"admin\"" in self.log("devmesh.log")
        until("the mesh", told, limit=30)

    def kubectl(self, *args, check=True, **options):
        binary = BIN / "kubectl" if (BIN / "kubectl").exists() else shutil.which("kubectl")
        return self.run("cp", binary, "--kubeconfig", self.kubeconfig, "--cache-dir", self.directory / "kubectl", *args, check=check, **options)

    def has_kubectl(self):
        return (BIN / "kubectl").exists() or shutil.which("kubectl") is not None

    def apply_file(self, path):
        """`kubectl apply`, or the same without kubectl; returns what was said."""
        if self.has_kubectl():
            made = self.kubectl("apply", "--server-side", "-f", path, check=False)
            return made.stdout + made.stderr
        said = ""
        for document in path.read_text().split("\n---\n"):
            kind, group = (re.search(rf"^{word}: *(\S+)", document, re.M)[1] for word in ("kind", "apiVersion"))
            name, namespace = (re.search(rf"^  {word}: *(\S+)", document, re.M)[1] for word in ("name", "namespace"))
            plural = re.sub(r"y$", "ie", kind.lower()) + "s"
            url = f"{KUBERNETES}/apis/{group}/namespaces/{namespace}/{plural}/{name}?fieldManager=demo&force=true"
            made = self.run("cp", "curl", "-ksS", "-f", "-X", "PATCH", "-H", "Content-Type: application/apply-patch+yaml",
                            "-H", f"Authorization: Bearer {self.admin_token()}", "--data-binary", "@-", url, input=document, check=False)
            said += made.stderr or f"{kind.lower()}.{group.split('/')[0]}/{name} applied\n"
        return said

    def endpoints(self):
        """The WorkloadEntries as a table."""
        if self.has_kubectl():
            return self.kubectl("-n", "vms", "get", "workloadentries", "-o",
                                "custom-columns=NAME:.metadata.name,ADDRESS:.spec.address,SERVICE ACCOUNT:.spec.serviceAccount,APP:.spec.labels.app").stdout
        url = f"{KUBERNETES}/apis/networking.istio.io/v1/namespaces/vms/workloadentries"
        got = json.loads(self.run("cp", "curl", "-ksS", "-f", "-H", f"Authorization: Bearer {self.admin_token()}", url).stdout)
        rows = [("NAME", "ADDRESS", "SERVICE ACCOUNT", "APP")]
        rows += [(one["metadata"]["name"], one["spec"]["address"], one["spec"]["serviceAccount"], one["spec"]["labels"]["app"]) for one in got["items"]]
        return "".join(f"{name:<28}{address:<14}{account:<18}{app}\n" for name, address, account, app in rows)

    def commands(self, name):
        """The command lines of what runs in a namespace."""
        return [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in self.pids(name)]

    def admin(self, path, *arguments):
        """The mesh's own door; returns the answer's body."""
        made = self.run("cp", "curl", "-sS", "-f", "-m", "10", *arguments, f"{ADMIN}{path}", check=False)
        if made.returncode:
            raise subprocess.SubprocessError(made.stderr)
        return made.stdout

    def rotate(self):
        """Another root, step by step."""
        self.admin("/rotate-root", "-X", "POST", "-H", f"Authorization: Bearer {self.admin_token()}")

    def admin_token(self):
        return json.loads(self.kubeconfig.read_text())["users"][0]["user"]["token"]

    def view(self):
        """What the mesh's web page draws from."""
        return json.loads(self.admin("/v1/view"))
