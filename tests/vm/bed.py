"""What the tests on booted VMs share: one control plane, a name server, the package, and machines on one network."""

import atexit
import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
import time

sys.path.append(str(pathlib.Path(__file__).parents[1] / "istio"))

from lab import BIN, CONTROL_PLANE, Lab, until  # noqa: E402
from machine import Machine  # noqa: E402
import package  # noqa: E402

HERE = pathlib.Path(__file__).parent
#: One for the whole tier; brought up by suite.py.
LAB = Lab()
#: What every VM has on its disk before it boots for the first time: the proxy, the package, a legacy program.
LAYER = LAB.directory / "layer"
#: The name by which machines get to istiod.
GATEWAY = "gateway.cloud.internal"
MACHINES = {}
STARTED = time.monotonic()
ADDRESSES = iter(f"10.99.0.{number}" for number in range(11, 250))

LEGACY = """
[Unit]
Description=A legacy program, which knows nothing of meshes
[Service]
DynamicUser=yes
StateDirectory=legacy
ExecStart=/usr/bin/python3 /opt/legacy/app.py %H /var/lib/legacy
[Install]
WantedBy=multi-user.target
"""


def say(text):
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", file=sys.stderr, flush=True)


def up():
    """The control plane with the story's objects, names for the VMs, and what their disks begin with."""
    LAB.up()
    LAB.story()
    LAB.start("cp", "dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--local=/#/", "--interface=br0", "--bind-interfaces",
              "--user=root", "--pid-file=", f"--host-record={GATEWAY},{CONTROL_PLANE}", log="dnsmasq.log")
    (LAYER / "usr/local/bin").mkdir(parents=True)
    (LAYER / "opt/legacy").mkdir(parents=True)
    (LAYER / "etc/systemd/system/multi-user.target.wants").mkdir(parents=True)
    shutil.copy(BIN / "envoy", LAYER / "usr/local/bin/envoy")
    shutil.copy(HERE.parent / "istio/app.py", LAYER / "opt/legacy/app.py")
    shutil.copy(HERE / "load.py", LAYER / "opt/legacy/load.py")
    shutil.copy(package.FILE, LAYER / "opt/vm-agent.deb")
    (LAYER / "etc/systemd/system/legacy.service").write_text(LEGACY)
    (LAYER / "etc/systemd/system/multi-user.target.wants/legacy.service").symlink_to("../legacy.service")


def bundle(group):
    """A join bundle for a WorkloadGroup, as its operator makes it."""
    file = LAB.directory / f"{group}.bundle.yaml"
    if not file.exists():
        LAB.run("cp", package.AGENT, "bundle", "create", group, "-n", "vms", "--kubeconfig", LAB.kubeconfig, "--gateway", GATEWAY, "-o", file)
    return file.read_text()


def user_data(group):
    """All that a VM is given to join by itself."""
    return f"""#cloud-config
write_files:
- path: /root/join.yaml
  permissions: '0600'
  content: |
{textwrap.indent(bundle(group), "    ")}
runcmd:
- [dpkg, -i, /opt/vm-agent.deb]
- [vm-agent, join, /root/join.yaml]
"""


def machine(name):
    """A new machine, which is off, with an empty seed."""
    made = MACHINES[name] = Machine(LAB, name, next(ADDRESSES), LAYER)
    made.seed("#cloud-config\npreserve_hostname: false\n")
    return made


def status(machine):
    made = machine.exec("vm-agent", "status", "--json", check=False)
    return json.loads(made.stdout) if made.stdout else {}


def until_ready(machine, limit=90):
    until(f"{machine.name} is in the mesh", lambda: status(machine).get("ready"), limit=limit, pause=0.2)
    return status(machine)


def boot(name, group):
    """Starts a new machine with nothing but user data; returns at once."""
    made = machine(name)
    made.seed(user_data(group))
    return made.power_on()


def joined(name, group):
    """The machine of this name, in the mesh; booted when it does not exist yet."""
    (MACHINES.get(name) or boot(name, group)).until_up()
    until_ready(MACHINES[name])
    return MACHINES[name]


def curl(machine, *args, user="nobody"):
    """A request of an ordinary program inside; returns status code and body."""
    made = machine.exec("setpriv", "--reuid", user, "--clear-groups", "curl", "-s", "-m", "10", "-w", "\\n%{http_code}", *args, check=False)
    body, _, code = made.stdout.rpartition("\n")
    return int(code or 0), body


def destroy(name):
    MACHINES.pop(name).destroy()


def down():
    for name in list(MACHINES):
        destroy(name)


# Runs before the lab goes down, whose network the machines are on.
atexit.register(down)
