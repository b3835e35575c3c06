"""The faults: what is done, how long it lasts, and when it has ended. All are done to real processes, packets and objects."""

import contextlib
import json
import os
import signal
import time

from lab import until
from world import ADDRESSES, STEPPED

#: Seconds within which the pieces of the harness itself answer; no promise of the agent depends on it.
LIMIT = 180
ENVOY_FILTER = """
apiVersion: networking.istio.io/v1alpha3
kind: EnvoyFilter
metadata: {name: chaos-%(service)s, namespace: vms}
spec:
  workloadSelector: {labels: {app: %(service)s}}
  configPatches:
  - applyTo: CLUSTER
    patch:
      operation: ADD
      # Envoy rejects it: the size of the table has to be a prime number.
      value: {name: chaos, type: STATIC, connect_timeout: 5s, lb_policy: MAGLEV, maglev_lb_config: {table_size: 4}}
"""


class Faults:
    """One method for each kind: a generator that yields where the fault lasts."""

    def __init__(self, world):
        self.world = world

    def run(self, event, wait):
        """The fault from its begin to its end; `wait(seconds)` waits while it lasts."""
        made = getattr(self, event.kind.replace("-", "_"))
        with made(event, self.world.machines.get(event.machine)):
            wait(event.seconds)

    def kubectl(self, *args, check=True, **options):
        """An operator's command. The API server may be busy; faults that take it away hold the lock."""
        with self.world.operator:
            return self.world.kubectl(*args, check=check, **options)

    # --- the agent ---

    def another_agent(self, machine, old):
        until(f"another agent runs on {machine.name}", lambda: machine.agent_pid() not in (None, old), limit=LIMIT)

    @contextlib.contextmanager
    def agent_kill(self, event, machine):
        for _ in range(1 + int(event.choice * 4)):
            pid = until("an agent runs", machine.agent_pid, limit=LIMIT)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.another_agent(machine, pid)
        yield

    @contextlib.contextmanager
    def agent_restart(self, _, machine):
        pid = until("an agent runs", machine.agent_pid, limit=LIMIT)
        machine.signal_unit(signal.SIGUSR1)
        self.another_agent(machine, pid)
        yield

    @contextlib.contextmanager
    def agent_freeze(self, _, machine):
        pid = until("an agent runs", machine.agent_pid, limit=LIMIT)
        os.kill(pid, signal.SIGSTOP)
        yield
        if machine.agent_pid() == pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        until("an agent runs", machine.agent_pid, limit=LIMIT)

    @contextlib.contextmanager
    def agent_stop(self, _, machine):
        until("an agent runs", machine.agent_pid, limit=LIMIT)
        machine.signal_unit(signal.SIGUSR2)
        until("the agent has ended", lambda: machine.agent_pid() is None, limit=LIMIT)
        yield
        machine.signal_unit(signal.SIGUSR2)
        machine.until_ready(limit=LIMIT)

    @contextlib.contextmanager
    def envoy_kill(self, _, machine):
        old = until("an Envoy runs", machine.proxy_pid, limit=LIMIT)
        with contextlib.suppress(ProcessLookupError):
            os.kill(old, signal.SIGKILL)
        until("another Envoy runs", lambda: machine.proxy_pid() not in (None, old), limit=LIMIT)
        machine.until_ready(limit=LIMIT)
        yield

    # --- istiod ---

    def istiod_gone(self, number):
        process = self.world.istiod_process
        process.send_signal(number)
        process.wait(30)

    @contextlib.contextmanager
    def istiod_restart(self, *_):
        self.istiod_gone(signal.SIGTERM)
        self.world.istiod_start()
        yield

    @contextlib.contextmanager
    def istiod_kill(self, *_):
        self.istiod_gone(signal.SIGKILL)
        yield
        self.world.istiod_start()

    @contextlib.contextmanager
    def istiod_freeze(self, *_):
        self.world.istiod_process.send_signal(signal.SIGSTOP)
        yield
        self.world.istiod_process.send_signal(signal.SIGCONT)

    # --- the API server ---

    @contextlib.contextmanager
    def api_stop(self, *_):
        with self.world.operator:
            process = self.world.process("kube-apiserver.log")
            process.kill()
            process.wait()
            yield
            self.world.again("kube-apiserver.log")
            until("the API server is ready", self.world.api_ready, limit=LIMIT, pause=0.3)

    @contextlib.contextmanager
    def api_freeze(self, *_):
        with self.world.operator:
            process = self.world.process("kube-apiserver.log")
            process.send_signal(signal.SIGSTOP)
            yield
            process.send_signal(signal.SIGCONT)
            until("the API server is ready", self.world.api_ready, limit=LIMIT, pause=0.3)

    @contextlib.contextmanager
    def gate(self, mode):
        self.world.set_gate(mode)
        yield
        self.world.set_gate("pass")

    def api_429(self, *_):
        return self.gate("429")

    def api_500(self, *_):
        return self.gate("500")

    def api_refuse(self, *_):
        return self.gate("refuse")

    def api_hang(self, *_):
        return self.gate("hang")

    # --- objects ---

    def entry(self, machine):
        return machine.name if machine.kubernetes else f"{machine.group}-{ADDRESSES[machine.name]}"

    def patch(self, kind, name, operations, check=True):
        return self.kubectl("-n", "vms", "patch", kind, name, "--type=json", "-p", json.dumps(operations), check=check)

    @contextlib.contextmanager
    def entry_delete(self, _, machine):
        self.kubectl("-n", "vms", "delete", "workloadentry", self.entry(machine), "--wait=false", "--ignore-not-found")
        yield

    entry_delete_istiod = entry_delete

    @contextlib.contextmanager
    def entry_edit(self, event, machine):
        name = self.entry(machine)
        self.kubectl("-n", "vms", "annotate", "--overwrite", "workloadentry", name, f"team=chaos-{event.choice:.3f}", check=False)
        self.patch("workloadentry", name, [{"op": "remove", "path": "/spec/ports"}], check=False)
        yield

    @contextlib.contextmanager
    def entry_relabel(self, _, machine):
        name = self.entry(machine)
        self.patch("workloadentry", name, [{"op": "remove", "path": "/spec/labels/app"}], check=False)
        yield
        if not machine.kubernetes:
            # istiod keeps what it has made as it is: who took the label away puts it back.
            self.patch("workloadentry", name, [{"op": "add", "path": "/spec/labels/app", "value": machine.group}], check=False)

    @contextlib.contextmanager
    def group_edit(self, event, _):
        self.patch("workloadgroup", event.service, [{"op": "add", "path": "/spec/metadata/labels/edited", "value": "yes"}])
        yield
        self.patch("workloadgroup", event.service, [{"op": "remove", "path": "/spec/metadata/labels/edited"}])

    @contextlib.contextmanager
    def service_edit(self, event, _):
        port = {"number": 81, "name": "http-more", "protocol": "HTTP", "targetPort": 9080}
        self.patch("serviceentry", event.service, [{"op": "add", "path": "/spec/ports/-", "value": port}])
        yield
        self.patch("serviceentry", event.service, [{"op": "remove", "path": "/spec/ports/2"}])

    @contextlib.contextmanager
    def envoy_reject(self, event, _):
        text = ENVOY_FILTER % {"service": event.service}
        self.kubectl("apply", "-f", "-", input=text)
        yield
        self.kubectl("delete", "-f", "-", "--ignore-not-found", input=text)

    # --- the machine ---

    @contextlib.contextmanager
    def health_flap(self, _, machine):
        sick = machine.files_of_app / "sick"
        sick.touch()
        yield
        sick.unlink()

    def reloaded(self, machine, section, values):
        """Asks again while the agent is away or starts."""
        until(f"{machine.name} reads its configuration", lambda: machine.reload(section, values).returncode == 0, limit=LIMIT, pause=0.5)

    @contextlib.contextmanager
    def reload_labels(self, event, machine):
        self.reloaded(machine, "workload", {"labels": {"version": f"v{int(event.choice * 1000)}"}})
        yield

    @contextlib.contextmanager
    def reload_address(self, _, machine):
        first = ADDRESSES[machine.name]
        second = first.rpartition(".")[0] + "." + str(int(first.rpartition(".")[2]) + 100)
        self.world.run(machine.name, "ip", "addr", "replace", f"{second}/24", "dev", "eth0")
        self.reloaded(machine, "workload", {"address": second})
        yield
        self.reloaded(machine, "workload", {"address": first})

    @contextlib.contextmanager
    def dropped(self, machine, incoming, outgoing):
        table = f"chaos_{time.monotonic_ns()}"
        rules = (f"table inet {table} {{ chain in {{ type filter hook input priority -300; iifname eth0 {incoming} drop; }}; "
                 f"chain out {{ type filter hook output priority -300; oifname eth0 {outgoing} drop; }}; }}")
        self.world.run(machine.name, "nft", rules)
        yield
        self.world.run(machine.name, "nft", "delete", "table", "inet", table)

    def packet_loss(self, _, machine):
        return self.dropped(machine, "numgen random mod 100 < 10", "numgen random mod 100 < 10")

    def link_cut(self, _, machine):
        return self.dropped(machine, "", "")

    def istiod_path_cut(self, _, machine):
        return self.dropped(machine, "tcp sport 15012", "tcp dport 15012")

    @contextlib.contextmanager
    def disk_full(self, _, machine):
        filler = machine.state / "filler"
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        yield
        filler.unlink(missing_ok=True)

    @contextlib.contextmanager
    def clock_step(self, event, machine):
        assert machine.name in STEPPED
        machine.set_clock(20 if event.choice < 0.5 else -20)
        yield
        machine.set_clock(0)
