"""The tier "real control plane": vm-agent against the real istiod, kube-apiserver and Envoy.

Run it with `make test-istio`, or with `make test-istio ARGS=Capture` for one class. Every wait has a limit; nothing is
retried. With MESH=devmesh (`make test-mesh`) the tests that are marked for both run on the development mesh.
"""

import os
import signal
import sys
import unittest

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

def both():
    """The names of the tests that run on istiod and on the development mesh."""
    classes = sorted((one for one in globals().values() if isinstance(one, type) and issubclass(one, Case)), key=lambda one: one.__name__)
    named = [(one, name) for one in classes for name in sorted(vars(one)) if name.startswith("test_")]
    return [f"{one.__name__}.{name}" for one, name in named if getattr(vars(one)[name], "on_both", False)]


if __name__ == "__main__":
    if sys.argv[1:] == ["--list-both"]:
        print("these tests of the real control plane run on the development mesh, too:", *both(), sep="\n  ")
        sys.exit(0)
    if os.environ.get("MESH") == "devmesh" and len(sys.argv) == 1:
        sys.argv += both()
    # The lab is taken down when the program ends; without this a SIGTERM would end it before that.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"agent {AGENT}, Envoy {ENVOY}", file=sys.stderr)
    LAB.up()
    LAB.story()
    for name, ip in (("vm1", "10.99.0.11"), ("vm2", "10.99.0.12"), ("vm3", "10.99.0.13"), ("vm4", "10.99.0.14")):
        LAB.vm(name, ip)
    unittest.main(verbosity=2)
