"""The tier "real control plane": vm-agent against the real istiod, kube-apiserver and Envoy.

Run it with `make test-istio`, or with `make test-istio ARGS=Capture` for one class. Every wait has a limit; nothing is
retried. With MESH=devmesh (`make test-mesh`) the tests that are marked for both run on the development mesh. Without ARGS
the classes are shared out to some labs at once (`workers.py`; LABS=1 for one after the other).
"""

import os
import signal
import sys
import unittest

import workers
from case import LAB, Case
from vm import AGENT, ENVOY

# The test classes, by the name that ARGS gives.
from bundle import *
from capture import *
from convergence import *
from credential import *
from drift import *
from facts import *
from faults import *
from fleet import *
from health import *
from inputs import *
from joining import *
from names import *
from neighbour import *
from renewal import *
from secret_files import *
from shapes import *
from sources import *
from story import *
from survival import *
from travel import *

#: What takes longest is begun first.
LONG = ("Neighbour", "Convergence", "Survival", "Bundle", "Drift", "Renewal", "Story", "Travel", "Kubernetes", "Faults", "Fleet")
#: So many labs at once, where the whole suite runs.
LABS = int(os.environ.get("LABS") or 3)


def tests(marked):
    """The names of the tests by class: all, or only those that run on istiod and on the development mesh."""
    classes = sorted((one for one in globals().values() if isinstance(one, type) and issubclass(one, Case)), key=lambda one: one.__name__)
    names = {one.__name__: [f"{one.__name__}.{name}" for name in sorted(vars(one)) if name.startswith("test_")
                            and (not marked or getattr(vars(one)[name], "on_both", False))] for one in classes}
    return {name: found for name, found in names.items() if found}


def up():
    """The lab with all that the tests find in it."""
    # The lab is taken down when the program ends; without this a SIGTERM would end it before that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    LAB.up()
    LAB.story()
    for name, ip in (("vm1", "10.99.0.11"), ("vm2", "10.99.0.12"), ("vm3", "10.99.0.13"), ("vm4", "10.99.0.14")):
        LAB.vm(name, ip)


if __name__ == "__main__":
    if sys.argv[1:] == ["--list-both"]:
        print("these tests of the real control plane run on the development mesh, too:", *(name for names in tests(True).values() for name in names), sep="\n  ")
        sys.exit(0)
    if sys.argv[1:2] == [workers.ROLE]:
        workers.work(sys.modules[__name__], up)
        sys.exit(0)
    print(f"agent {AGENT}, Envoy {ENVOY}", file=sys.stderr)
    if len(sys.argv) == 1:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        found = tests(os.environ.get("MESH") == "devmesh")
        sys.exit(0 if workers.Pool(sorted(found.items(), key=lambda one: LONG.index(one[0]) if one[0] in LONG else len(LONG)), LABS).run() else 1)
    up()
    unittest.main(verbosity=2)
