"""The development mesh in the place of etcd, kube-apiserver and istiod: the same story, kubectl, istioctl and VMs."""

import base64
import json
import os
import pathlib

from lab import BIN, CONTROL_PLANE, Lab, until

DEVMESH = pathlib.Path(os.environ.get("DEVMESH", pathlib.Path(__file__).parents[2] / "target/debug/vm-agent-devmesh")).absolute()


class DevmeshLab(Lab):
    #: What it is started with beside that.
    arguments = ()

    def up(self):
        missing = [str(path) for path in (DEVMESH, *(BIN / name for name in ("istioctl", "kubectl", "envoy"))) if not path.exists()]
        if missing:
            raise SystemExit(f"missing: {', '.join(missing)}; run tests/istio/peers.sh and cargo build --features devmesh")
        self._add_network()
        self.kubeconfig = self.directory / "state/kubeconfig"
        self.istiod_start()
        mesh = "trustDomain: cluster.local\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n"
        (self.directory / "mesh.yaml").write_text(mesh)
        self.kubectl("-n", "istio-system", "create", "configmap", "istio", f"--from-file=mesh={self.directory}/mesh.yaml",
                     "--from-literal=meshNetworks=networks: {}")

    @property
    def server_ca(self):
        cluster = json.loads(self.kubeconfig.read_text())["clusters"][0]["cluster"]
        path = self.directory / "server-ca.pem"
        path.write_bytes(base64.b64decode(cluster["certificate-authority-data"]))
        return path

    def istiod_start(self):
        """The whole control plane: here it is one program."""
        self.istiod_process = self.start("cp", DEVMESH, "serve", "--state", self.directory / "state", "--listen", CONTROL_PLANE, *self.arguments, log="devmesh.log")
        ready = lambda: self.kubeconfig.exists() and self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0
        until("the development mesh", ready, limit=30)

    def admin(self, path):
        """What the administrator's door says."""
        return json.loads(self.run("cp", "curl", "-sf", f"http://{CONTROL_PLANE}:8080{path}").stdout)
