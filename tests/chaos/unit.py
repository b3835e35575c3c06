"""What systemd does for vm-agent.service, where there is no systemd: unit.py DIRECTORY AGENT ROOT -- FIRST COMMAND...

It starts the agent again 0.5 s after its end (RestartSec=500ms), keeps its sockets meanwhile (FileDescriptorStoreMax=), ends
one that does not report for 6 s (WatchdogSec=6) and runs `after-stop` after each end (ExecStopPost=), all as the shipped unit
says. The first command may be a join; every later one is `run`.

Signals to it: USR1 restarts the agent in order (`systemctl restart`), USR2 stops it in order (`systemctl stop`) or starts it
again, TERM stops the agent and ends. DIRECTORY/agent.pid is the agent's process, DIRECTORY/unit.log says what happened.
"""

import array
import os
import pathlib
import select
import signal
import socket
import subprocess
import sys
import time

#: As in systemd/vm-agent.service.
RESTART, WATCHDOG = 0.5, 6.0
#: Exit statuses after which a restart would not help.
PREVENT = {2, 4, 10}
DIRECTORY, AGENT, ROOT = pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
FIRST = sys.argv[sys.argv.index("--") + 1:]
RUN = [AGENT, "--root", str(ROOT), "run"]
MAX_MESSAGE, MAX_DESCRIPTORS = 4096, 32


def say(text):
    with open(DIRECTORY / "unit.log", "a", encoding="utf-8") as log:
        log.write(f"{time.monotonic():.2f} {text}\n")


class Unit:
    def __init__(self):
        path = DIRECTORY / "notify.sock"
        path.unlink(missing_ok=True)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(path))
        self.store, self.child, self.fed, self.wish, self.command = [], None, 0.0, None, FIRST

    def start(self):
        """sd_listen_fds(3) and sd_notify(3): the stored sockets are descriptors from 3 on."""
        pid = os.fork()
        if pid == 0:
            os.setsid()
            # Moved out of the way first, as the numbers from 3 on may be in use.
            spare = [os.dup2(fd, 200 + index) for index, (_, fd) in enumerate(self.store)]
            for index, fd in enumerate(spare):
                os.dup2(fd, 3 + index)
            os.closerange(3 + len(spare), 1024)
            environment = {**os.environ, "NOTIFY_SOCKET": str(DIRECTORY / "notify.sock"), "WATCHDOG_USEC": str(int(WATCHDOG * 1e6)),
                           "WATCHDOG_PID": str(os.getpid())}
            if preload := environment.pop("CHAOS_PRELOAD", None):
                environment["LD_PRELOAD"] = preload
            if spare:
                environment |= {"LISTEN_FDS": str(len(spare)), "LISTEN_PID": str(os.getpid()),
                                "LISTEN_FDNAMES": ":".join(name for name, _ in self.store)}
            os.execve(self.command[0], self.command, environment)
        self.child, self.fed = pid, time.monotonic()
        (DIRECTORY / "agent.pid").write_text(f"{pid}\n")
        say(f"started {pid} with {len(self.store)} sockets")
        self.command = RUN

    def heard(self):
        """One notification."""
        data, ancillary, _, _ = self.notify.recvmsg(MAX_MESSAGE, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4))
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[:len(content) - len(content) % 4])
        fields = dict(line.partition("=")[::2] for line in data.decode(errors="replace").splitlines())
        name = fields.get("FDNAME", "stored")
        if fields.get("WATCHDOG") == "1":
            self.fed = time.monotonic()
        if fields.get("FDSTOREREMOVE") == "1":
            for _, fd in [one for one in self.store if one[0] == name]:
                os.close(fd)
            self.store = [one for one in self.store if one[0] != name]
        for fd in descriptors:
            if fields.get("FDSTORE") == "1" and not any(os.path.sameopenfile(fd, kept) for _, kept in self.store):
                self.store.append((name, fd))
            else:
                # A barrier is answered by closing its descriptor, and a socket is not stored twice.
                os.close(fd)

    def ended(self):
        """Whether the agent has ended; its exit status is logged."""
        pid, status = os.waitpid(self.child, os.WNOHANG)
        if pid == 0:
            return False
        code = os.waitstatus_to_exitcode(status)
        say(f"ended {pid} with {code}")
        self.child = None
        (DIRECTORY / "agent.pid").write_text("")
        subprocess.run([AGENT, "--root", str(ROOT), "after-stop"], stdin=subprocess.DEVNULL, timeout=60)
        if code in PREVENT:
            say("not started again")
            self.wish = "stopped"
        return True

    def stop_in_order(self, restart):
        if self.child is None:
            return
        if restart:
            # ExecStop=before-stop does this when the unit's job is a restart.
            made = subprocess.run(["curl", "-s", "-m", "5", "-X", "POST", "--unix-socket", str(ROOT / "run/vm-agent/admin.sock"),
                                   "-H", "Content-Length: 0", "http://localhost/v1/step-aside"], capture_output=True, text=True)
            say(f"step aside: curl {made.returncode}")
        os.kill(self.child, signal.SIGTERM)
        os.kill(self.child, signal.SIGCONT)

    def abort(self):
        say("watchdog")
        os.kill(self.child, signal.SIGABRT)
        # As systemd does: a stopped process would not notice.
        os.kill(self.child, signal.SIGCONT)
        self.fed = time.monotonic()

    def run(self):
        asked = []
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda which, _: asked.append(which))
        start_at = 0.0
        while True:
            if asked:
                which = asked.pop(0)
                if which == signal.SIGUSR1:
                    self.stop_in_order(restart=True)
                    start_at = 0.0
                elif which == signal.SIGUSR2 and self.wish == "stopped":
                    self.wish, start_at = None, 0.0
                else:
                    self.wish = "stopped" if which == signal.SIGUSR2 else "over"
                    self.stop_in_order(restart=False)
            if self.child is None:
                if self.wish == "over":
                    return
                if self.wish is None and time.monotonic() >= start_at:
                    self.start()
            elif self.ended():
                start_at = time.monotonic() + RESTART
            elif time.monotonic() - self.fed > WATCHDOG:
                self.abort()
            if select.select([self.notify], [], [], 0.05)[0]:
                self.heard()


Unit().run()
