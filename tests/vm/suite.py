"""The tier "booted VMs": the package, the service and the commands on machines that boot, against the real control plane.

Run it with `make test-vm`, or with `make test-vm ARGS=Story` for one class. Every wait has a limit; nothing is retried.
"""

import signal
import sys
import unittest

import bed
import package

# The test classes, by the name that ARGS gives.
from attack import *
from boot import *
from disruption import *
from gone import *
from images import *
from outside import *
from sandbox import *
from story import *
from trouble import *

if __name__ == "__main__":
    # All is taken down when the program ends; without this a signal would end it before that.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))
    bed.say(f"agent {package.AGENT}")
    bed.up()
    bed.say("the control plane runs")
    unittest.main(verbosity=2)
