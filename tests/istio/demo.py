"""`make demo-istio`: two VMs join a real mesh, and everything is gone again afterwards.

Ends with status 0 only if all that it shows did hold.
"""

import argparse
import signal
import sys
import threading
import time

from lab import Lab, until
from screen import follow, say
from vm import Vm


def show(lab, vms):
    say("\nThe mesh's registry (kubectl get workloadentries):")
    print(lab.kubectl("-n", "vms", "get", "workloadentries", "-o", "custom-columns=NAME:.metadata.name,ADDRESS:.spec.address,SERVICE ACCOUNT:.spec.serviceAccount,LABELS:.spec.labels.app").stdout)
    for vm in vms:
        say(f"{vm.name}: vm-agent status")
        print(vm.command("status", check=True).stdout)
        say(f"{vm.name}: vm-agent cert show")
        print(vm.command("cert", "show", check=True).stdout)


def call(lab):
    """The story: an ordinary program on vm1 calls the legacy service on vm2."""
    www = lab.directory / "www"
    www.mkdir()
    (www / "index.html").write_text("hello from the legacy service on vm2\n")
    lab.start("vm2", sys.executable, "-m", "http.server", "9080", log="server.log", cwd=www)
    ask = lambda path: lab.curl("vm1", f"http://details.internal.com{path}")
    until("the service answers", lambda: ask("/")[0] == 200, limit=30)
    say("vm1 $ curl http://details.internal.com/           (plain HTTP from the program, mutual TLS between the VMs)")
    code, body = ask("/")
    print(f"      {code} {body}")
    say("vm1 $ curl http://details.internal.com/secret     (an AuthorizationPolicy denies this path to vm1's identity)")
    denied, body = ask("/secret")
    print(f"      {denied} {body}")
    outside = lab.run("cp", "curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "http://10.99.0.12:9080/", check=False)
    say("elsewhere $ curl http://10.99.0.12:9080/          (without an identity of the mesh)")
    print(f"      refused (curl ends with {outside.returncode})\n")
    return (code, denied) == (200, 403) and outside.returncode != 0


def main():
    parser = argparse.ArgumentParser(prog="make demo-istio ARGS=…")
    parser.add_argument("--once", action="store_true", help="show it and end, which is what it always does")
    parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(130))
    started = time.monotonic()
    lab = Lab()
    try:
        say("Starting etcd, kube-apiserver and istiod in a network namespace …")
        lab.up()
        lab.story()
        vms = [Vm(lab, "vm1", "10.99.0.11", "client"), Vm(lab, "vm2", "10.99.0.12", "details-legacy")]
        for vm in vms:
            lab.vm(vm.name, vm.ip)
            vm.capture = "nftables"
        say("Two empty VMs join, each with one command:\n")
        ending = threading.Event()
        followers = []
        for vm in vms:
            shown = [str(part).replace(str(lab.directory), "") for part in vm.join_command()]
            say("$ " + " ".join(["vm-agent", *shown[1:3], "--foreground", "--name", vm.name, "--address", vm.ip, "…"]), vm.name)
            vm.join()
            followers.append(threading.Thread(target=follow, args=(lab, vm, ending)))
            followers[-1].start()
        try:
            for vm in vms:
                vm.until_ready()
        finally:
            time.sleep(0.1)
            ending.set()
            for follower in followers:
                follower.join()
        show(lab, vms)
        good = call(lab)
        ended = [vm.stop() for vm in vms]
        left = [pid for vm in vms for pid in lab.pids(vm.name) if "envoy" in open(f"/proc/{pid}/comm", encoding="utf-8").read()]
        good = good and ended == [0, 0] and not left
        say(f"{'All of it held' if good else 'SOMETHING DID NOT HOLD'}; {time.monotonic() - started:.0f} s. Cleaning up.")
        return 0 if good else 1
    finally:
        lab.down()


if __name__ == "__main__":
    sys.exit(main())
