"""What the tests on booted VMs share: one control plane, a name server, a web server, the package, and machines on one network."""

import atexit
import base64
import hashlib
import json
import pathlib
import re
import shutil
import sys
import time

# Behind this directory: its modules have names of their own.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "istio"))

from lab import BIN, CONTROL_PLANE, Lab, until  # noqa: E402
from machine import Machine  # noqa: E402
import package  # noqa: E402

HERE = pathlib.Path(__file__).parent
EXAMPLES = package.TOP / "packaging/cloud-init"
#: One for the whole tier; brought up by suite.py.
LAB = Lab()
#: What every VM has on its disk before it boots for the first time: the proxy and a legacy program.
LAYER = LAB.directory / "layer"
#: What machines can fetch.
SERVED = LAB.directory / "served"
#: The names by which machines get to istiod: through the mesh's gateway, or directly.
GATEWAY, ISTIOD = "gateway.cloud.internal", "istiod.istio-system.svc"
MACHINES = {}
STARTED = time.monotonic()
ADDRESSES = iter([f"10.99.0.{number}" for number in range(11, 250)])

LEGACY = """
[Unit]
Description=A legacy program, which knows nothing of meshes
# What starts before is stopped after: nobody calls it any more then.
Before=vm-agent.service
# The machine has its name then.
After=cloud-init.service
[Service]
DynamicUser=yes
StateDirectory=legacy
ExecStart=/bin/sh -c 'exec python3 /opt/legacy/app.py "$(uname -n)" /var/lib/legacy'
[Install]
WantedBy=multi-user.target
"""


def say(text):
    print(f"[{time.monotonic() - STARTED:5.1f} s] {text}", file=sys.stderr, flush=True)


def up():
    """The control plane with the story's objects, what a cloud has beside its machines, and what their disks begin with."""
    LAB.up()
    LAB.story()
    SERVED.mkdir()
    shutil.copy(package.under_test(LAB.directory), SERVED / "vm-agent.deb")
    LAB.start("cp", "dnsmasq", "--no-daemon", "--no-resolv", "--no-hosts", "--local=/#/", "--interface=br0", "--bind-interfaces", "--user=root",
              "--pid-file=", f"--host-record={GATEWAY},{CONTROL_PLANE}", f"--host-record={ISTIOD},{CONTROL_PLANE}", log="dnsmasq.log")
    LAB.start("cp", sys.executable, "-m", "http.server", "8000", "--bind", CONTROL_PLANE, "--directory", SERVED, log="served.log")
    for directory in ("usr/local/bin", "opt/legacy", "etc/systemd/system/multi-user.target.wants"):
        (LAYER / directory).mkdir(parents=True)
    shutil.copy(BIN / "envoy", LAYER / "usr/local/bin/envoy")
    for file in (HERE.parent / "istio/app.py", HERE / "load.py"):
        shutil.copy(file, LAYER / "opt/legacy")
    (LAYER / "etc/systemd/system/legacy.service").write_text(LEGACY)
    (LAYER / "etc/systemd/system/multi-user.target.wants/legacy.service").symlink_to("../legacy.service")


def bundle(group):
    """A join bundle for a WorkloadGroup, as its operator makes it, at a URL."""
    file = SERVED / f"{group}.yaml"
    if not file.exists():
        LAB.run("cp", package.AGENT, "bundle", "create", group, "-n", "vms", "--kubeconfig", LAB.kubeconfig, "--gateway", GATEWAY, "-o", file)
        file.chmod(0o644)
    return file


def user_data(example, **places):
    """One of the package's examples for cloud-init, filled in as its README says."""
    text = (EXAMPLES / f"{example}.yaml").read_text()
    places["PACKAGE"] = f"http://{GATEWAY}:8000/vm-agent.deb"
    places["PACKAGE_SHA256"] = hashlib.sha256((SERVED / "vm-agent.deb").read_bytes()).hexdigest()
    for place, value in places.items():
        text = text.replace(f"@{place}@", value)
    # Comments name places, too.
    left = [line for line in text.splitlines() if re.search("@[A-Z_]+@", line) and not line.lstrip().startswith("#")]
    if left:
        raise AssertionError(f"{example}.yaml has places that nothing fills in: {left}")
    return text


def with_bundle(group):
    """User data with the bundle in it."""
    return user_data("join", BUNDLE=encoded(bundle(group)))


def with_url(group):
    """User data that fetches the bundle."""
    return user_data("fetch", BUNDLE_URL=f"http://{GATEWAY}:8000/{bundle(group).name}")


def with_token(group):
    """User data for an image that has all but its configuration."""
    files = LAB.configure(group)
    return user_data("baked", NAMESPACE="vms", GROUP=group, SERVICE_ACCOUNT=group, ISTIOD=f"{ISTIOD}:15012",
                     ROOT_CERT=encoded(files / "root-cert.pem"), TOKEN=encoded(files / "istio-token"))


def encoded(file):
    return base64.b64encode(file.read_bytes()).decode()


def machine(name):
    """A new machine, which is off, with a seed that says nothing."""
    made = MACHINES[name] = Machine(LAB, name, next(ADDRESSES), LAYER)
    made.seed("#cloud-config\n{}\n")
    return made


def boot(name, seed):
    """Starts a new machine with nothing but user data; returns at once."""
    made = machine(name)
    made.seed(seed)
    return made.power_on()


def joined(name, group):
    """The machine of this name, in the mesh; booted when it does not exist yet."""
    machine = MACHINES.get(name) or boot(name, with_url(group))
    machine.until_up()
    until_ready(machine)
    return machine


def status(machine):
    made = machine.exec("vm-agent", "status", "--json", check=False)
    return json.loads(made.stdout) if made.stdout else {}


def until_ready(machine, limit=90):
    until(f"{machine.name} is in the mesh", lambda: status(machine).get("ready"), limit=limit, pause=0.2)
    return status(machine)


def curl(machine, *args, user="nobody"):
    """A request of an ordinary program inside; returns status code and body."""
    made = machine.exec("setpriv", "--reuid", user, "--clear-groups", "curl", "-s", "-m", "10", "-w", "\\n%{http_code}", *args, check=False)
    body, _, code = made.stdout.rpartition("\n")
    return int(code or 0), body


def destroy(name):
    """A machine that is gone for good, and what an operator then takes away."""
    machine = MACHINES.pop(name)
    machine.destroy()
    for entry, found in LAB.entries().items():
        if found["spec"]["address"] == machine.ip:
            LAB.kubectl("-n", "vms", "delete", "workloadentry", entry)


def down():
    while MACHINES:
        MACHINES.popitem()[1].destroy()


# Runs before the lab goes down, whose network the machines are on.
atexit.register(down)
