"""What the demonstrations print: lines by whom they are from, and what agents say while they say it."""

import os
import sys
import time

SHADES = {"vm1": "\033[36m", "vm2": "\033[35m", "vm3": "\033[33m", "": "\033[1m"} if sys.stdout.isatty() and "NO_COLOR" not in os.environ else {}


def say(text, who=""):
    prefix = f"{who:<4} | " if who else ""
    print(f"{SHADES.get(who, '')}{prefix}{text}{SHADES and chr(27) + '[0m' or ''}", flush=True)


def follow(lab, vm, ending):
    """Prints what the agent of a VM says, line by line, while it says it."""
    path, done = lab.directory / f"{vm.name}.log", 0
    while True:
        last = ending.is_set()
        text = path.read_text(errors="replace") if path.exists() else ""
        for line in text[done:].splitlines(keepends=True):
            if line.endswith("\n"):
                done += len(line)
                if not line.startswith("2"):  # the steps; the log itself stays in its file
                    say(line.rstrip(), vm.name)
        if last:
            return
        time.sleep(0.05)
