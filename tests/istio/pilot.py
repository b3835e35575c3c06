"""The real pilot-agent as a VM's agent: the peer that vm-agent lives beside and is compared with."""

import pathlib
import shutil
import subprocess

from lab import BIN, CONTROL_PLANE, PEERS, until


class Pilot:
    """One VM with pilot-agent. `key` is its environment for the kind of key; with `capture` it gets Istio's rules and DNS."""

    def __init__(self, lab, name, ip, group, key="", capture=False):
        self.lab, self.name, self.ip, self.group, self.key, self.capture = lab, name, ip, group, key, capture
        self.directory, self.process = lab.directory / f"pilot-{name}", None

    def prepare(self):
        # It has to resolve istiod's name; the file is changed in place, as running processes have it mounted.
        hosts = pathlib.Path("/etc/netns") / self.lab.namespace(self.name) / "hosts"
        line = f"{CONTROL_PLANE} istiod.istio-system.svc\n"
        if line not in hosts.read_text():
            with open(hosts, "a", encoding="utf-8") as file:
                file.write(line)
        subprocess.run(["rm", "-rf", self.directory], check=True)
        source = self.lab.join_directory(self.group)
        for part in ("etc/istio/proxy", "etc/istio/config", "etc/certs", "var/run/secrets/tokens", "var/lib/istio/envoy"):
            (self.directory / part).mkdir(parents=True)
        for name, target in (("root-cert.pem", "etc/certs"), ("istio-token", "var/run/secrets/tokens")):
            (self.directory / target / name).write_bytes((source / name).read_bytes())
        # Envoy's user has to reach the binaries; pilot-agent starts /usr/local/bin/envoy unless its mesh file names another.
        for binary in ("pilot-agent", "envoy"):
            if not (self.lab.directory / binary).exists():
                shutil.copy(BIN / binary, self.lab.directory / binary)
        text = (source / "mesh.yaml").read_text()
        text = text.replace("defaultConfig:\n", f"defaultConfig:\n  binaryPath: {self.lab.directory}/envoy\n", 1)
        (self.directory / "etc/istio/config/mesh").write_text(text)
        template = self.directory / "var/lib/istio/envoy/envoy_bootstrap_tmpl.json"
        template.write_bytes((PEERS / "envoy_bootstrap_tmpl.json").read_bytes())
        subprocess.run(["chown", "-R", "1337", self.directory], check=True)

    def environment(self):
        dns = "" if self.capture else "ISTIO_META_DNS_CAPTURE=false;"
        return (f"set -a; . {self.lab.join_directory(self.group)}/cluster.env; {dns} CLOUD_PLATFORM=none; {self.key} "
                f"PROV_CERT=./etc/certs OUTPUT_CERTS=./etc/certs INSTANCE_IP={self.ip} POD_NAME={self.name} "
                f"ISTIO_META_INSTANCE_IPS={self.ip} CA_ADDR=istiod.istio-system.svc:15012; set +a; ")

    def start(self):
        agent = self.lab.directory / "pilot-agent"
        if self.capture:
            rules = f"{self.environment()} exec {agent} istio-iptables -p 15001 -z 15006 -u 1337 -g 1337 -m REDIRECT -i '*' -b '*' -d 22,15090,15021,15020 --redirect-dns"
            self.lab.run(self.name, "bash", "-c", rules)
        command = self.environment() + (
            f"exec setpriv --reuid 1337 --regid 1337 --clear-groups {agent} proxy --templateFile var/lib/istio/envoy/envoy_bootstrap_tmpl.json")
        self.process = self.lab.start(self.name, "bash", "-c", command, log=f"{self.name}.log", cwd=self.directory)
        return self.process

    def join(self):
        self.prepare()
        self.start()
        return self

    def until_ready(self, limit=60):
        page = ("http://127.0.0.1:15021/healthz/ready",)
        until(f"{self.name} is ready", lambda: self.lab.curl(self.name, *page, user=0)[0] == 200, limit=limit)
