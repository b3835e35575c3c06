"""`make demo`: three empty VMs come into a mesh and call each other; then you play. `--once` shows it and ends by itself.

Ends with status 0 only if all that it shows did hold. Nothing is left of it.
"""

import argparse
import json
import os
import pathlib
import shlex
import signal
import sys
import tempfile
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests/istio"))
os.environ.setdefault("VM_AGENT", str(HERE.parent / "target/debug/vm-agent"))

from lab import CONTROL_PLANE, until  # noqa: E402
from mesh import Mesh  # noqa: E402
from namespaces import enter, run as run_apart  # noqa: E402
from relay import Doors  # noqa: E402
from screen import follow, say  # noqa: E402
from vm import Vm  # noqa: E402

APP, RESOLVER = HERE.parent / "tests/istio/app.py", HERE.parent / "tests/istio/resolver.py"
HOST = "http://details.internal.com"
FILES = sorted(HERE.glob("*.yaml"))
#: Short, so that one sees certificates being renewed.
LIFE = "60s"
#: What Envoy counts beside Istio's usual choice, for the picture.
STATS = "mesh.proxyConfig.proxyStatsMatcher={inclusionSuffixes: [upstream_rq_403, ssl.handshake, no_filter_chain_match]}"
HELP = """
  call [PATH]          have vm1 call the service; try /secret
  kubectl get we       any kubectl command (get we,se,wg,ap,pa; describe; edit in your terminal, see above)
  apply                apply demo/*.yaml again, after you changed them
  kill vm2             a machine dies at once: agent, Envoy and program
  kill agent vm2       only its agent dies: calls go on
  start vm2            it comes back
  add                  one more machine joins and serves
  rotate               the mesh gets a new root, without a failed call (about three lives of a certificate)
  status vm1           what the agent says; `page vm1` is the same in a browser
  logs vm1 | mesh      the last lines of a log
  quit                 clean up and leave
"""


class Demo:
    def __init__(self, directory, ttl=LIFE):
        # In memory, and out of everybody's sight: keys are in there, and nothing of it is left whatever happens.
        self.lab = Mesh(ttl, directory="/run/demo")
        self.directory, self.vms, self.held = directory, {}, True

    # --- machines ---

    def machine(self, name, ip, group):
        """An empty VM, and the legacy program on those that serve."""
        self.lab.vm(name, ip, nameserver=CONTROL_PLANE)
        vm = Vm(self.lab, name, ip, group)
        vm.capture = "nftables"
        self.vms[name] = vm
        self.serve(vm)
        return vm

    def serve(self, vm):
        if vm.group == "details-legacy":
            files = self.lab.directory / f"served-{vm.name}"
            files.mkdir(exist_ok=True)
            self.lab.start(vm.name, sys.executable, APP, vm.name, files, log=f"{vm.name}-app.log")
        else:
            self.lab.start(vm.name, "setpriv", "--reuid", "1000", "--regid", "1000", "--clear-groups",
                           sys.executable, HERE / "caller.py", HOST, log=f"{vm.name}-app.log")

    def join(self, vms):
        """All at the same time; shows what their agents say until they are ready."""
        ending, followers = threading.Event(), []
        for vm in vms:
            say(f"$ vm-agent join ./{vm.group} --foreground --name {vm.name} --address {vm.ip} --capture nftables", vm.name)
            vm.join("--set", f"identity.ttl={self.lab.ttl}", "--set", "status.access=any", "--set", STATS)
            followers.append(threading.Thread(target=follow, args=(self.lab, vm, ending)))
            followers[-1].start()
        try:
            for vm in vms:
                vm.until_ready()
        finally:
            time.sleep(0.1)
            ending.set()
            for follower in followers:
                follower.join()

    def joined(self):
        """The three machines of the story."""
        vms = [self.machine("vm1", "10.99.0.11", "client"), *(self.machine(f"vm{n}", f"10.99.0.1{n}", "details-legacy") for n in (2, 3))]
        say("Three empty VMs join, each with one command:\n")
        self.join(vms)

    # --- the doors to the world outside ---

    def door(self, name, namespace, host, port):
        """A loopback port of the user's machine that leads into a namespace."""
        told = self.directory / f"{name}.port"
        if not told.exists():
            self.lab.start(namespace, sys.executable, HERE / "relay.py", self.directory / f"{name}.sock", host, port, log="relay.log")
        return until(f"a port for {name}", lambda: told.exists() and int(told.read_text()), limit=15)

    def kubeconfig(self, port):
        """One for the user's own terminal."""
        config = json.loads(self.lab.kubeconfig.read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
        config["contexts"][0]["context"]["namespace"] = "vms"
        path = self.directory / "kubeconfig"
        path.write_text(json.dumps(config, indent=1))
        return path

    # --- the show ---

    def up(self):
        """The mesh, and what demo/*.yaml says of it."""
        started = time.monotonic()
        self.lab.up()
        self.resolve()
        say(f"The mesh is up after {time.monotonic() - started:.1f} s: a CA, configuration for Envoys, and the part of the Kubernetes API that this needs.")
        self.apply()

    def resolve(self):
        """A resolver for the names of the world outside."""
        self.resolver = self.lab.start("cp", sys.executable, RESOLVER, CONTROL_PLANE, f"elsewhere.example={CONTROL_PLANE}", log="resolver.log")

    def apply(self):
        """What demo/*.yaml says."""
        for path in FILES:
            say(f"$ kubectl apply --server-side -f demo/{path.name}" if self.lab.has_kubectl() else f"demo/{path.name} is applied by the API, since kubectl is not here")
            made = self.lab.apply_file(path)
            print("".join(f"      {line}\n" for line in made.splitlines()), end="")

    def show(self):
        """The story; each part is checked."""
        until("all endpoints answer", lambda: {self.told("/").get("name") for _ in range(6)} == {"vm2", "vm3"}, limit=30, pause=0.1)
        say(f"\nvm1 $ curl {HOST}/            # a program that knows nothing of meshes: plain HTTP, to a name")
        told = self.told("/")
        cert = told.get("headers", {}).get("x-forwarded-client-cert", "")
        print(f"      200, {told.get('name')} answers. Its Envoy says who called, as their certificates prove:")
        for part in ("URI", "By"):
            found = next((field.partition("=")[2] for field in cert.split(";") if field.startswith(f"{part}=")), "nobody")
            print(f"      {'from' if part == 'URI' else 'to':<5} {found}")
            self.check(found.startswith("spiffe://cluster.local/ns/vms/sa/"), f"the {part} in x-forwarded-client-cert")
        say(f"\nvm1 $ curl {HOST}/secret      # AuthorizationPolicy no-secret-for-client, in demo/3-policies.yaml")
        code, body = self.lab.curl("vm1", f"{HOST}/secret")
        print(f"      {code}, {body}")
        self.check(code == 403, "the refusal by the policy")
        say("\nelsewhere $ curl http://10.99.0.12:9080/            # somebody without an identity; mutual TLS is STRICT")
        outside = self.lab.run("cp", "curl", "-sS", "-m", "5", "http://10.99.0.12:9080/", check=False)
        print(f"      {outside.stderr.strip() or outside.stdout[:200]}")
        self.check(outside.returncode != 0, "the refusal of a plain call")
        say("\nvm2 $ vm-agent cert show")
        print("".join(f"      {line}\n" for line in self.vms["vm2"].command("cert", "show", check=True).stdout.splitlines()), end="")
        say("\n$ kubectl -n vms get workloadentries" if self.lab.has_kubectl() else "\nThe WorkloadEntries, by the API")
        shown = self.lab.endpoints()
        print("".join(f"      {line}\n" for line in shown.splitlines()), end="")
        self.check(all(vm.ip in shown for vm in self.vms.values()), "an entry for each machine")

    def told(self, path):
        code, body = self.lab.curl("vm1", f"{HOST}{path}")
        return json.loads(body) if code == 200 else {}

    def check(self, held, what):
        if not held:
            self.held = False
            say(f"      THIS DID NOT HOLD: {what}")

    # --- the prompt ---

    def play(self):
        page = self.door("page", "cp", CONTROL_PLANE, 8080)
        path = self.kubeconfig(self.door("kubernetes", "cp", CONTROL_PLANE, 6443))
        say(f"\nThe mesh as a picture:   http://127.0.0.1:{page}/")
        print(f"kubectl, in any terminal: export KUBECONFIG={path}\nCommands:{HELP}", flush=True)
        while True:
            try:
                words = shlex.split(input("mesh> "))
            except ValueError as error:
                print(f"  {error}")
                continue
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if words[:1] in (["quit"], ["exit"]):
                return
            if words:
                self.obey(*words)

    def obey(self, command, *args):
        does = {"call": self.do_call, "kubectl": self.do_kubectl, "apply": self.apply, "kill": self.do_kill, "start": self.do_start, "add": self.do_add,
                "rotate": self.do_rotate, "status": self.do_status, "page": self.do_page, "logs": self.do_logs, "help": lambda: print(HELP)}.get(command)
        try:
            if does is None:
                raise ValueError(f"{command} is no command; help lists them")
            does(*args)
        except KeyError as error:
            print(f"  there is no machine {error}; there are {', '.join(self.vms)}")
        except TypeError:
            print(f"  {command} is used otherwise; see help")
        except (ValueError, OSError, AssertionError, SystemError) as error:
            print(f"  {error}")

    def do_call(self, path="/"):
        code, body = self.lab.curl("vm1", f"{HOST}{path}")
        if code == 200 and body.startswith("{"):
            told = json.loads(body)
            body = f"{told['name']} answers; x-forwarded-client-cert: {told['headers'].get('x-forwarded-client-cert', 'none')}"
        print(f"  {code or 'no answer'} {body}")

    def do_kubectl(self, *args):
        if not self.lab.has_kubectl():
            raise ValueError("kubectl is not here: install it, or look at the page")
        made = self.lab.kubectl("-n", "vms", *args, check=False)
        print((made.stdout + made.stderr).rstrip())

    def do_kill(self, *args):
        *what, name = args
        vm = self.vms[name]
        if what == ["agent"]:
            vm.process.kill()
            vm.process.wait()
            print(f"  the agent of {name} is dead; its Envoy goes on. `start {name}` brings the agent back")
            return
        vm.end()
        print(f"  {name} is dead. Watch its endpoint: kubectl get we, or the page; `start {name}` brings it back")

    def do_start(self, name):
        vm = self.vms[name]
        if vm.process and vm.process.poll() is None:
            raise ValueError(f"{name} is running")
        if not any("app.py" in line or "caller.py" in line for line in self.lab.commands(name)):
            self.serve(vm)
        vm.run()
        vm.until_ready()
        print(f"  {name} is in the mesh")

    def do_add(self):
        number = len(self.vms) + 1
        self.join([self.machine(f"vm{number}", f"10.99.0.{10 + number}", "details-legacy")])

    def do_rotate(self):
        self.lab.rotate()
        print(f"  a new root is trusted now, signs after {self.lab.ttl}, and the old one goes after another {self.lab.ttl}")

    def do_status(self, name):
        made = self.vms[name].command("status")
        print(made.stdout + made.stderr)

    def do_page(self, name):
        self.vms[name]
        print(f"  http://127.0.0.1:{self.door(f'{name}-status', name, '127.0.0.1', 15020)}/")

    def do_logs(self, name):
        print(self.lab.log("devmesh.log" if name == "mesh" else f"{self.vms[name].name}.log")[-3000:])

    # --- the end ---

    def end(self):
        for vm in self.vms.values():
            vm.process and vm.process.poll() is None and vm.process.terminate()
        ended = [vm.process.wait(40) for vm in self.vms.values() if vm.process]
        self.check(set(ended) <= {0}, f"every agent leaves with status 0 ({ended})")
        left = [pid for name in self.vms for pid in self.lab.pids(name) if "envoy" in pathlib.Path(f"/proc/{pid}/comm").read_text()]
        self.check(not left, "no Envoy is left")


def inside(directory, once):
    enter()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(130))
    started = time.monotonic()
    demo = Demo(directory)
    try:
        demo.up()
        demo.joined()
        demo.show()
        if once:
            demo.end()
            say(f"\n{'All of it held' if demo.held else 'SOMETHING DID NOT HOLD'}; {time.monotonic() - started:.0f} s. Cleaning up.")
        else:
            demo.play()
            say("Cleaning up.")
        return 0 if demo.held else 1
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        demo.lab.down()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], prog="make demo ARGS=…")
    parser.add_argument("--once", action="store_true", help="show it, and end by itself")
    parser.add_argument("--inside", type=pathlib.Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return inside(args.inside, args.once)
    directory = pathlib.Path(tempfile.mkdtemp(prefix="vm-agent-demo-"))
    directory.chmod(0o755)
    Doors(directory).start()
    return run_apart([sys.executable, HERE / "demo.py", "--inside", directory, *(["--once"] if args.once else [])], directory)


if __name__ == "__main__":
    sys.exit(main())
