"""What the tests on the real control plane share: one lab, two machines, requests between them."""

import os
import pathlib
import sys
import threading
import time
import unittest

from devmesh import DevmeshLab
from lab import CONTROL_PLANE, Lab, until
from vm import Vm

APP = pathlib.Path(__file__).parent / "app.py"
RESOLVER = pathlib.Path(__file__).parent / "resolver.py"
#: Brought up once by suite.py.
LAB = DevmeshLab() if os.environ.get("MESH") == "devmesh" else Lab()


def answers(call):
    """Whether requests are answered in a row: each worker thread of the caller's Envoy gets a new listener in its own moment."""
    return all(call()[0] == 200 for _ in range(20))


def on_both(test):
    """Marks a test that holds on istiod and on the development mesh."""
    test.on_both = True
    return test


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # Of an earlier class, in whatever order they run: entries that a machine makes itself stay.
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")

    def setUp(self):
        self.vm1 = Vm(LAB, "vm1", "10.99.0.11", "client")
        self.vm2 = Vm(LAB, "vm2", "10.99.0.12", "details-legacy")

    def tearDown(self):
        for vm in (self.vm1, self.vm2):
            vm.reset()
            LAB.forget_rules(vm.name)

    def run(self, result=None):
        before = len(result.failures) + len(result.errors)
        outcome = super().run(result)
        if len(result.failures) + len(result.errors) > before:
            for vm in (self.vm1, self.vm2):
                print(f"--- the last of {vm.name}'s log ---\n{vm.log()[-3000:]}", file=sys.stderr)
        return outcome

    def new_root(self):
        """istiod gets another root, as if it had been installed anew; returns it."""
        root = lambda: LAB.kubectl("-n", "vms", "get", "configmap", "istio-ca-root-cert", "-o", r"jsonpath={.data.root-cert\.pem}").stdout
        old = root()
        LAB.istiod_stop()
        LAB.kubectl("-n", "istio-system", "delete", "secret", "istio-ca-secret")
        LAB.istiod_start()
        # What other tests join with holds the old root.
        self.addCleanup(lambda: [LAB.configure(group) for group in ("client", "details-legacy")])
        return until("istiod has told its new root", lambda: root() if root() not in ("", old) else None)

    def no_entries(self):
        # After its own restart istiod looks for machines that are gone only every 100 seconds.
        until("istiod has removed the entries", lambda: not LAB.entries(), limit=180, pause=0.3)


class Traffic(Case):
    """What the tests with requests through the mesh share."""

    def setUp(self):
        super().setUp()
        for vm in (self.vm1, self.vm2):
            vm.capture = "nftables"

    def serve(self, name):
        """The legacy program on a machine: plain HTTP, and TCP that is not HTTP."""
        files = LAB.directory / f"served-{name}"
        files.mkdir(exist_ok=True)
        process = LAB.start(name, sys.executable, APP, name, files, log=f"app-{name}.log")
        until("the program listens", lambda: "listening" in LAB.log(f"app-{name}.log"))
        self.addCleanup((LAB.directory / f"app-{name}.log").unlink, missing_ok=True)
        self.addCleanup(LAB.stop, process)
        return files

    def resolver(self, names):
        """A resolver of the world outside, on the control plane's machine, that knows these names."""
        known = [f"{name}={ip}" for name, ip in names.items()]
        process = LAB.start("cp", sys.executable, RESOLVER, CONTROL_PLANE, *known, log="resolver.log")
        self.addCleanup((LAB.directory / "resolver.log").unlink)
        self.addCleanup(LAB.stop, process)
        until("the resolver listens", lambda: "listening" in LAB.log("resolver.log"))
        self.addCleanup(self.resolvers, "nameserver 127.0.0.53\n")

    def resolvers(self, text):
        """The resolv.conf of vm1 and vm2, changed in place, as a process in the namespace has it mounted."""
        for name in ("vm1", "vm2"):
            (pathlib.Path("/etc/netns") / LAB.namespace(name) / "resolv.conf").write_text(text)

    def traffic(self):
        """The program on vm2, and a new connection from vm1 through both Envoys per request."""
        self.serve("vm2")
        call = lambda: LAB.curl("vm1", "http://details.internal.com/")
        until("the story works", lambda: answers(call), limit=90)
        return Load(call)


class BothWays(Traffic):
    """vm1 is registered by istiod, vm2 by itself; each calls the other, over mutual TLS."""

    def join_both_ways(self, *args):
        """Joins both; returns the calls to each machine by its name, which both have answered."""
        LAB.kubectl("-n", "vms", "delete", "workloadentries", "--all")
        self.serve("vm1")
        self.serve("vm2")
        token = LAB.directory / "kube-token"
        token.write_text(LAB.token("details-legacy", "https://kubernetes.default.svc"))
        self.vm1.join(*args)
        self.vm2.join(*args, "--registration", "kubernetes", "--kube-server", f"https://{CONTROL_PLANE}:6443", "--kube-ca", LAB.server_ca,
                      "--kube-token-file", token, "--label", "app=details-legacy")
        for vm in (self.vm1, self.vm2):
            vm.until_ready()
        calls = {"vm2": self.call("vm1", "240.1.2.3", "details.internal.com"), "vm1": self.call("vm2", "240.1.2.6", "caller.internal.com")}
        for call in calls.values():
            until("each can call the other", lambda: answers(call), limit=90)
        return calls

    def call(self, caller, address, host):
        """A request that needs no name to be looked up: the agent answers those."""
        return lambda: LAB.curl(caller, "-H", f"Host: {host}", f"http://{address}/")


class Load:
    """Requests one after the other, in a thread."""

    def __init__(self, call):
        self.call, self.good, self.bad, self.ending = call, 0, [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        while not self.ending.is_set():
            code, body = self.call()
            if code == 200:
                self.good += 1
            else:
                self.bad.append((time.strftime("%H:%M:%S"), code, body[:200]))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join(30)
