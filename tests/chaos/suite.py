"""The tier "chaos": faults by chance and on top of each other, under a steady load, and every lost request is judged.

    suite.py [--minutes 5] [--seed 1] [--pace 100] [--only KIND,KIND] [--keep DIRECTORY] | --table

The schedule follows from the seed. The exit status is 0 when the table in costs.py explains every loss, every machine serves
again after each fault, and the agents use at the end what they used at the begin.
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import signal
import sys
import threading
import time

import costs
import resources
from judge import Fault, Judge
from schedule import schedule

SETTLING = 60.0
#: Seconds after which a machine that does not come back into traffic is the judge's matter.
HINDERED = 120.0
#: Lines of losses that are printed one by one.
PRINTED = 200


def arguments():
    parser = argparse.ArgumentParser(prog="make test-chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "1")))
    parser.add_argument("--pace", type=float, default=100.0, help="requests a second, of all machines together")
    parser.add_argument("--only", default="", help="kinds of faults, with commas; `none` for no fault")
    parser.add_argument("--keep", default="", help="a directory for logs and records")
    parser.add_argument("--table", action="store_true", help="print the table of what each fault may cost")
    return parser.parse_args()


class Run:
    def __init__(self, world, given):
        from faults import Faults
        self.world, self.given, self.faults = world, given, Faults(world)
        self.happened, self.broken, self.held, self.threads, self.certificates = [], [], set(), [], {}
        self.lock, self.over = threading.Condition(), threading.Event()

    def say(self, text):
        print(f"[{time.monotonic() - self.began:7.1f}] {text}", flush=True)

    def perform(self, event):
        """One fault, in a thread of its own; what it had for itself is free again when all is as before."""
        from lab import Timeout, until
        fault = Fault(event.kind, event.machine, event.service, time.monotonic())
        self.happened.append(fault)
        others = [str(one) for one in self.happened if one is not fault and one.end is None]
        self.say(f"begin {fault}, {event.seconds:.1f} s{'; beside ' + ', '.join(others) if others else ''}")
        try:
            self.faults.run(event, lambda seconds: self.over.wait(seconds))
        except Exception as error:  # A fault that cannot be made fails the run; the others go on.
            self.broken.append(f"{fault}: {type(error).__name__}: {error}")
        fault.end = time.monotonic()
        self.say(f"end   {fault} after {fault.end - fault.start:.1f} s")
        if any(name.startswith("out of traffic") for name in event.alone):
            self.over.wait(self.calm(event.kind))
            # By then it serves again, unless other faults hinder that.
            with contextlib.suppress(Timeout):
                until(f"{event.service} is in traffic", lambda: self.over.is_set() or self.world.in_traffic(event.service), limit=HINDERED, pause=2)
        with self.lock:
            self.held -= set(event.alone)
            self.lock.notify_all()

    @staticmethod
    def calm(kind):
        """Seconds until another machine of the service may be taken out: this one has to serve again."""
        return costs.COSTS[kind].settle / 2

    def seconds(self):
        """How long faults begin: the last minute is for what has to settle."""
        return max(self.given.minutes * 60 - SETTLING, self.given.minutes * 30)

    def cause(self, events):
        """Begins the faults at their times, or as soon as what they need is free."""
        waiting, end = list(events), self.began + self.seconds()
        while time.monotonic() < end:
            now = time.monotonic() - self.began
            with self.lock:
                ready = next((one for one in waiting if one.at <= now and not self.held & set(one.alone)), None)
                if ready:
                    self.held |= set(ready.alone)
            if ready:
                waiting.remove(ready)
                thread = threading.Thread(target=self.perform, args=(ready,), daemon=True)
                self.threads.append(thread)
                thread.start()
            else:
                time.sleep(0.1)
        self.over.set()
        for thread in self.threads:
            thread.join(400)
        if waiting:
            self.say(f"{len(waiting)} faults of the schedule had no chance: {sorted({one.kind for one in waiting})}")

    def run(self):
        from lab import until
        kinds = None if not self.given.only else set(self.given.only.split(","))
        self.began = time.monotonic()
        self.world.build()
        until("each proxy has both endpoints", self.world.endpoints_known, limit=180, pause=0.3)
        self.world.load(self.given.pace / len(self.world.machines))
        until("everybody is answered", self.all_answered, limit=120, pause=0.3)
        # What a start costs is no part of the begin: caches are filled, and certificates were renewed.
        time.sleep(10)
        before = resources.look(self.world)
        self.began, started = time.monotonic(), time.monotonic()
        self.say(f"seed {self.given.seed}, {self.given.minutes} minutes, {self.given.pace} requests/s; {resources.line(before)}")
        self.cause(schedule(self.given.seed, self.seconds(), kinds))
        self.calm_down()
        after = resources.look(self.world)
        self.say(f"at the end: {resources.line(after)}")
        self.end_loads()
        records = [one for one in self.world.records() if one.get("second", one.get("begin", 0)) >= started]
        counts = {name: sum(1 for one in self.happened if one.machine in (None, name)) for name in self.world.machines}
        minutes = (time.monotonic() - started) / 60
        self.certificates = {name: machine.certificates() for name, machine in self.world.machines.items()}
        self.broken += [f"{name}: no certificate is in its log" for name, ends in self.certificates.items() if not ends]
        return records, resources.compare(before, after, minutes, counts) + self.broken

    def all_answered(self):
        seen = {(one["from"], name) for one in self.world.records() if one.get("flow") == "http" for name in one["by"]}
        return len(seen) == 2 * len(self.world.machines)

    def calm_down(self):
        """After the last fault: time for it to settle, and for each machine to be seen."""
        from judge import SEEN_WITHIN
        last = max((one.until() for one in self.happened), default=time.monotonic())
        self.say("no more faults")
        time.sleep(max(0.0, last - time.monotonic()) + SEEN_WITHIN + 3)
        for name, machine in self.world.machines.items():
            if not machine.is_ready():
                self.broken.append(f"{name} is not ready at the end: {machine.status().get('conditions')}")
        if not self.world.endpoints_known():
            self.broken.append("at the end a proxy does not have both endpoints")
        wanted = {f"alpha-{machine.ip}" if not machine.kubernetes else name for name, machine in self.world.machines.items()}
        if set(self.world.entries()) != wanted:
            self.broken.append(f"the WorkloadEntries at the end are {sorted(self.world.entries())}")

    def end_loads(self):
        for machine in self.world.machines.values():
            machine.client.terminate()
        for machine in self.world.machines.values():
            machine.client.wait(90)


def ways(losses):
    """What was lost in one way, in words."""
    first, last = losses[0], losses[-1]
    by = f" ({first['by']})" if first.get("by") else ""
    return f"{len(losses)}x {first['lost']} {first['from']} -> {first['to']}{by}: {first['why']}, after {last['end'] - last['begin']:.1f} s"


def print_losses(judge, verdict, began):
    """The unexplained ones by second with all faults of that second, the allowed ones by the fault that explains them."""
    print(f"\nlost: {len(verdict.unexplained)} unexplained, {len(verdict.explained)} allowed")
    seconds, faults = {}, {}
    for loss in sorted(verdict.unexplained, key=lambda one: one["begin"]):
        seconds.setdefault((int(loss["begin"] - began), loss["from"], loss["to"], loss["lost"], loss["why"]), []).append(loss)
    for (second, *_), losses in list(seconds.items())[:PRINTED]:
        begin, end = losses[0]["begin"], losses[-1]["end"]
        active = [f"{one} ({'lasts' if one.lasts(begin, end) else f'ended {begin - one.end:.0f} s before'})" for one in judge.active(begin, end)]
        print(f"  UNEXPLAINED at {second} s: {ways(losses)}; faults: {', '.join(active) or 'none'}")
    if len(seconds) > PRINTED:
        print(f"  and {len(seconds) - PRINTED} lines more")
    for loss, reasons in verdict.explained:
        fault, allow = reasons[0]
        faults.setdefault((fault.start, str(fault), allow.why, loss["lost"], loss["from"], loss["to"], loss["why"]), []).append(loss)
    for (start, fault, why, *_), losses in sorted(faults.items(), key=lambda one: one[0][0]):
        print(f"  allowed at {losses[0]['begin'] - began:.0f} to {losses[-1]['begin'] - began:.0f} s: {ways(losses)}; {fault} at {start - began:.0f} s: {why}")


def report(judge, began, findings):
    """Prints the losses and the table; gives the number of what must not be."""
    verdict = judge.verdict()
    findings = findings + verdict.findings
    print_losses(judge, verdict, began)
    print(f"\n{'fault':18} {'times':>5} {'requests':>9} {'allowed':>8} {'unexplained':>12}")
    for kind, times, requests, allowed, bad, _ in judge.rows(verdict):
        print(f"{kind:18} {times:5} {requests:9} {allowed:8} {bad:12}")
    total = {flow: sum(one["ok"] for one in judge.seconds if one["flow"] == flow) for flow in costs.FLOWS}
    slowest = max((one["slowest"] for one in judge.seconds if one["flow"] == "http"), default=0)
    print(f"answered: {total}; slowest request {slowest:.1f} s; lost {len(verdict.explained)} allowed, {len(verdict.unexplained)} unexplained")
    for finding in findings:
        print(f"FINDING: {finding}")
    return len(verdict.unexplained) + len(findings)


def keep(world, directory, faults, records):
    import json
    target = pathlib.Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for path in list(world.directory.glob("*.log")) + list(world.directory.glob("unit-*/unit.log")):
        name = path.name if path.parent == world.directory else f"{path.parent.name}.log"
        shutil.copy(path, target / name)
    (target / "records.json").write_text(json.dumps(records))
    (target / "faults.json").write_text(json.dumps([vars(one) for one in faults]))


def main():
    given = arguments()
    if given.table:
        print(costs.table())
        return 0
    from world import SERVICE_OF, VIRTUAL, OTHER, World

    def service_of_address(text):
        """Which service a request goes to, by its address or name; for a machine the one that it calls."""
        if text in SERVICE_OF:
            return OTHER[SERVICE_OF[text]]
        return next((name for name, address in VIRTUAL.items() if address in text or name in text), None)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    world = World()
    run = Run(world, given)
    records, findings = [], []
    try:
        records, findings = run.run()
    finally:
        if given.keep:
            keep(world, given.keep, run.happened, records)
    judge = Judge(run.happened, records, SERVICE_OF, service_of_address, run.certificates)
    bad = report(judge, run.began, findings)
    print(f"\nchaos: seed {given.seed}, {given.minutes} minutes")
    # The words of unittest, which whoever adds up the tiers knows.
    print(f"Ran 1 test in {time.monotonic() - run.began:.0f}s\n\n{'FAILED (failures=1)' if bad else 'OK'}", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
