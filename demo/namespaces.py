"""Runs a program in namespaces of its own: users (where the caller is not root), mounts, processes and network.

Whatever it makes in there, addresses, rules and processes, ends with it, even when it is killed; the machine itself never
sees any of it.
"""

import os
import shutil
import signal
import subprocess
import sys

NEITHER = ("network namespaces cannot be made here: run it as root (sudo make demo), or let users make them "
           "(package uidmap, ranges in /etc/subuid and /etc/subgid, sysctl kernel.unprivileged_userns_clone=1 or user.max_user_namespaces)")


def _unshare():
    """The command that makes them; `setpriv` ends it with us."""
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    return ["setpriv", "--pdeathsig", "KILL", "unshare", *users, "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def run(command, directory):
    """Runs the command in namespaces to its end; returns its exit status. `directory` is removed afterwards."""
    tried = subprocess.run([*_unshare(), "true"], capture_output=True, text=True) if shutil.which("unshare") and shutil.which("setpriv") else None
    if tried is None or tried.returncode != 0:
        shutil.rmtree(directory, ignore_errors=True)
        raise SystemExit(f"{NEITHER}{': ' + tried.stderr.strip() if tried and tried.stderr else ''}")
    process = subprocess.Popen([*_unshare(), *map(str, command)])

    def end(*_):
        process.kill()
    # The terminal's Ctrl-C goes to the program inside as well, which cleans up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
    try:
        status = process.wait()
        return status if status >= 0 else 128 - status
    finally:
        # Files of the users inside belong to nobody that an ordinary user could remove.
        subprocess.run([*_unshare(), "rm", "-rf", str(directory)], stderr=subprocess.DEVNULL)


def enter():
    """To be called inside, first: loopback is up, and /run and /etc can be written without anybody else seeing it."""
    _become_init()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run"], check=True)
    # Made before the overlay: users who are not root could make no directory in it.
    for name in ("upper/netns", "work", "netns"):
        os.makedirs(f"/run/{name}")
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", "lowerdir=/etc,upperdir=/run/upper,workdir=/run/work", "/etc"], check=True)


def _become_init():
    """The first process of a process namespace has to bury those that nobody else waits for: a child does the work."""
    child = os.fork()
    if child == 0:
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: number == signal.SIGTERM and os.kill(child, number))
    while True:
        pid, status = os.wait()
        if pid == child:
            sys.stdout.flush()
            os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
