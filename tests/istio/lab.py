"""A real control plane (etcd, kube-apiserver, istiod) and empty VMs, in network namespaces of their own.

All names begin with one prefix, so that several labs never meet. Everything that a lab makes is gone after
`down`, which also runs when the program ends. Root is needed.
"""

import atexit
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

PEERS = pathlib.Path(os.environ.get("VM_AGENT_PEERS", pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "vm-agent/peers"))
BIN = PEERS / "bin"
CONTROL_PLANE = "10.99.0.1"
STORY = pathlib.Path(__file__).parent / "story.yaml"


class Timeout(AssertionError):
    """Something that was waited for did not happen."""


def until(what, check, limit=60.0, pause=0.05):
    """Polls `check` until it gives something true, and returns that."""
    end, last = time.monotonic() + limit, None
    while time.monotonic() < end:
        try:
            found = check()
            if found:
                return found
            last = found
        except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError) as error:
            last = error
        time.sleep(pause)
    raise Timeout(f"not within {limit} s: {what} (last: {last!r})")


class Lab:
    def __init__(self, directory=None, keep_output=None):
        if os.geteuid() != 0:
            raise SystemExit("root is needed to make network namespaces: run it with sudo")
        self.prefix = f"vma{os.getpid()}"
        self.directory = pathlib.Path(directory or tempfile.mkdtemp(prefix="vm-agent-lab-"))
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o755)
        self.namespaces, self.processes, self.istiod_process = [], [], None
        self.kubeconfig = self.directory / "kubeconfig"
        self.istiod_environment = {}
        atexit.register(self.down)

    # --- namespaces and processes ---

    def namespace(self, name):
        return f"{self.prefix}-{name}"

    def run(self, name, *command, check=True, **options):
        """Runs a command in a namespace, to its end."""
        options.setdefault("capture_output", True)
        options.setdefault("text", True)
        options.setdefault("timeout", 120)
        return subprocess.run(["ip", "netns", "exec", self.namespace(name), *map(str, command)], check=check, **options)

    def start(self, name, *command, log, environment=None, cwd=None):
        """Starts a command in a namespace; its output goes to a file."""
        out = open(self.directory / log, "ab")
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace(name), *map(str, command)],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True, cwd=cwd or self.directory,
            env={**os.environ, **(environment or {})})
        out.close()
        self.processes.append(process)
        return process

    def stop(self, process, limit=30):
        if process and process.poll() is None:
            process.terminate()
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode if process else None

    def pids(self, name):
        """The processes in a namespace."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace(name)], capture_output=True, text=True)
        return [int(pid) for pid in listed.stdout.split()]

    def log(self, name):
        path = self.directory / name
        return path.read_text(errors="replace") if path.exists() else ""

    def _add_namespace(self, name, hosts, nameserver=None):
        namespace = self.namespace(name)
        etc = pathlib.Path("/etc/netns") / namespace
        etc.mkdir(parents=True)
        self.namespaces.append(name)
        (etc / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        if nameserver:
            (etc / "resolv.conf").write_text(f"nameserver {nameserver}\n")
        subprocess.run(["ip", "netns", "add", namespace], check=True)
        self.run(name, "ip", "link", "set", "lo", "up")

    def _add_network(self):
        """The control plane's namespace, with the bridge that machines are connected to."""
        self._add_namespace("cp", f"{CONTROL_PLANE} istiod.istio-system.svc kubernetes.lab\n")
        self.run("cp", "ip", "link", "add", "br0", "type", "bridge")
        self.run("cp", "ip", "addr", "add", f"{CONTROL_PLANE}/24", "dev", "br0")
        self.run("cp", "ip", "link", "set", "br0", "up")

    # --- the control plane ---

    def up(self):
        missing = [name for name in ("pilot-discovery", "istioctl", "kube-apiserver", "kubectl", "envoy") if not (BIN / name).exists()]
        if missing:
            raise SystemExit(f"missing in {BIN}: {', '.join(missing)}; run tests/istio/peers.sh")
        self._add_network()
        self._api_server()
        self.kubectl("apply", "--server-side", "-f", PEERS / "crds.yaml")
        self.kubectl("create", "ns", "istio-system")
        mesh = "trustDomain: cluster.local\ndefaultConfig:\n  discoveryAddress: istiod.istio-system.svc:15012\n"
        (self.directory / "mesh.yaml").write_text(mesh)
        (self.directory / "meshNetworks").write_text("networks: {}\n")
        self.kubectl("-n", "istio-system", "create", "configmap", "istio", f"--from-file=mesh={self.directory}/mesh.yaml",
                     "--from-literal=meshNetworks=networks: {}")
        (self.directory / "istiod").mkdir()
        self.istiod_start()

    def _api_server(self):
        pki = self.directory / "pki"
        pki.mkdir()
        subprocess.run(["openssl", "genrsa", "-out", pki / "sa.key", "2048"], check=True, capture_output=True)
        (pki / "tokens.csv").write_text("admin-token,admin,admin,system:masters\n")
        self.start("cp", "etcd", "--data-dir", self.directory / "etcd", "--listen-client-urls", "http://127.0.0.1:2379",
                   "--advertise-client-urls", "http://127.0.0.1:2379", log="etcd.log")
        issuer = "https://kubernetes.default.svc"
        self.start("cp", BIN / "kube-apiserver", "--etcd-servers=http://127.0.0.1:2379", f"--cert-dir={pki}", "--secure-port=6443",
                   f"--advertise-address={CONTROL_PLANE}", f"--service-account-key-file={pki}/sa.key",
                   f"--service-account-signing-key-file={pki}/sa.key", f"--service-account-issuer={issuer}",
                   f"--api-audiences={issuer},istio-ca", f"--token-auth-file={pki}/tokens.csv", "--authorization-mode=RBAC",
                   "--service-cluster-ip-range=10.96.0.0/16", log="kube-apiserver.log")
        until("the API server's certificate", (pki / "apiserver.crt").exists)
        self.kubeconfig.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "lab", "cluster": {"server": f"https://{CONTROL_PLANE}:6443", "certificate-authority": f"{pki}/apiserver.crt"}}],
            "users": [{"name": "admin", "user": {"token": "admin-token"}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "admin"}}]}))
        until("the API server", lambda: self.kubectl("get", "--raw", "/readyz", check=False).returncode == 0, limit=120, pause=0.3)

    @property
    def server_ca(self):
        return self.directory / "pki/apiserver.crt"

    def istiod_start(self):
        environment = {
            "POD_NAME": "istiod-0", "POD_NAMESPACE": "istio-system", "REVISION": "default", "CLUSTER_ID": "Kubernetes",
            "JWT_POLICY": "third-party-jwt", "PILOT_CERT_PROVIDER": "istiod", "PILOT_ENABLE_ANALYSIS": "false",
            # Envoy here is the plain one: it has none of Istio's own filters.
            "PILOT_ENABLE_METADATA_EXCHANGE": "false", "PILOT_ENABLE_ALPN_FILTER": "false",
            "INJECTION_WEBHOOK_CONFIG_NAME": "", "VALIDATION_WEBHOOK_CONFIG_NAME": "", "KUBECONFIG": str(self.kubeconfig),
            **self.istiod_environment}
        self.istiod_process = self.start(
            "cp", BIN / "pilot-discovery", "discovery", "--kubeconfig", self.kubeconfig, "--monitoringAddr=:15014", "--httpAddr=:8080",
            "--grpcAddr=:15010", "--secureGRPCAddr=:15012", "--httpsAddr=:15017", f"--meshConfig={self.directory}/mesh.yaml",
            f"--networksConfig={self.directory}/meshNetworks", "--domain", "cluster.local",
            log="istiod.log", environment=environment, cwd=self.directory / "istiod")
        until("istiod", lambda: self.run("cp", "curl", "-sf", "127.0.0.1:8080/ready", check=False).returncode == 0, limit=120, pause=0.2)

    def istiod_stop(self):
        self.istiod_process.kill()
        self.istiod_process.wait()

    def kubectl(self, *args, check=True, **options):
        return self.run("cp", BIN / "kubectl", "--kubeconfig", self.kubeconfig, *args, check=check, **options)

    def apply(self, text):
        return self.kubectl("apply", "-f", "-", input=text)

    def entries(self, **options):
        """The WorkloadEntries of the namespace vms, by name."""
        items = json.loads(self.kubectl("-n", "vms", "get", "workloadentries", "-o", "json", **options).stdout)["items"]
        return {item["metadata"]["name"]: item for item in items}

    def token(self, account, audience, duration="1h"):
        made = self.kubectl("-n", "vms", "create", "token", account, f"--audience={audience}", f"--duration={duration}")
        return made.stdout.strip()

    # --- the story ---

    def story(self):
        """A legacy service on VMs: WorkloadGroups, a ServiceEntry, strict mutual TLS, a denied path, least RBAC."""
        self.kubectl("apply", "-f", STORY)
        for group in ("client", "details-legacy"):
            self.configure(group)

    def configure(self, group, directory=None):
        """What an operator runs for a WorkloadGroup."""
        directory = directory or self.join_directory(group)
        found = self.directory / f"{group}.yaml"
        found.write_text(self.kubectl("-n", "vms", "get", "workloadgroup", group, "-o", "json").stdout)
        self.run("cp", BIN / "istioctl", "x", "workload", "entry", "configure", "-f", found, "-o", directory, "--clusterID", "Kubernetes",
                 "--autoregister", "--ingressIP", CONTROL_PLANE, "--kubeconfig", self.kubeconfig)
        return directory

    def join_directory(self, group):
        return self.directory / f"join-{group}"

    # --- VMs ---

    def vm(self, name, ip, hosts="", nameserver="127.0.0.53"):
        """An empty machine on the control plane's network. Its resolver answers nobody: names have to come from elsewhere."""
        self._add_namespace(name, hosts, nameserver=nameserver)
        peer = f"p{os.getpid() % 100000}{name}"[:15]
        subprocess.run(["ip", "link", "add", "eth0", "netns", self.namespace(name), "type", "veth", "peer", "name", peer,
                        "netns", self.namespace("cp")], check=True)
        self.run(name, "ip", "addr", "add", f"{ip}/24", "dev", "eth0")
        self.run(name, "ip", "link", "set", "eth0", "up")
        self.run(name, "ip", "route", "add", "default", "via", CONTROL_PLANE)
        self.run("cp", "ip", "link", "set", peer, "master", "br0", "up")

    def forget_rules(self, name):
        """Whatever redirect rules anybody left, by nftables or by legacy iptables, which pilot-agent may choose."""
        self.run(name, "nft", "flush", "ruleset", check=False)
        for tool in ("iptables-legacy", "ip6tables-legacy"):
            if "\n-A " in self.run(name, f"{tool}-save", check=False).stdout:
                self.run(name, f"{tool}-restore", "--wait=30", input="".join(f"*{table}\nCOMMIT\n" for table in ("raw", "mangle", "nat", "filter")))

    def curl(self, name, *args, user=1000):
        """A request of an ordinary program; returns status code and body."""
        made = self.run(name, "setpriv", "--reuid", user, "--regid", user, "--clear-groups",
                        "curl", "-s", "-m", "10", "-w", "\n%{http_code}", *args, check=False)
        body, _, code = made.stdout.rpartition("\n")
        return int(code or 0), body

    def down(self):
        for process in reversed(self.processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self.processes):
            self.stop(process, limit=10)
        self.processes.clear()
        for name in self.namespaces:
            for pid in self.pids(name):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            subprocess.run(["ip", "netns", "del", self.namespace(name)], capture_output=True)
            shutil.rmtree(f"/etc/netns/{self.namespace(name)}", ignore_errors=True)
        self.namespaces.clear()
        shutil.rmtree(self.directory, ignore_errors=True)
