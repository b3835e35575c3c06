"""An ordinary program that calls a service all day: caller.py URL. Every tenth call is for what it may not have."""

import itertools
import sys
import time
import urllib.error
import urllib.request

for number in itertools.count(1):
    path = "/secret" if number % 10 == 0 else "/"
    try:
        urllib.request.urlopen(sys.argv[1] + path, timeout=5).read()
    except (urllib.error.URLError, OSError):
        pass
    time.sleep(0.25)
