"""Which losses the faults explain. It reads records only, so that it can be tried with made-up ones (selfcheck.py)."""

import collections
import dataclasses

from costs import COSTS, FLOWS, HINDRANCES, NO_RENEWAL

#: Seconds of a certificate's life in this tier, and the share of it after which it is renewed at the latest.
LIFE, RENEWED = 60.0, 0.4
#: Seconds between two hindrances in which a renewal that backs off may not have been tried.
RENEWAL_PAUSE = 10.0
#: Seconds after a hindrance in which what waited for its end goes on.
RESUMED = 15.0
#: Seconds in which a machine that is well is sent a request for sure.
SEEN_WITHIN = 15.0


@dataclasses.dataclass
class Fault:
    """A fault that happened. `end` is None while it lasts."""

    kind: str
    machine: str
    service: str
    start: float
    end: float = None
    note: str = ""

    def until(self):
        """When everything has to be well again."""
        return float("inf") if self.end is None else self.end + COSTS[self.kind].settle

    def touches(self, begin, end, after=0.0, until=0.0):
        over = self.until() if self.end is None else max(self.until(), self.end + until)
        return begin <= over and end >= self.start + after

    def lasts(self, begin, end):
        return begin <= (float("inf") if self.end is None else self.end) and end >= self.start

    def __str__(self):
        return f"{self.kind} {self.machine or ''}".strip()


def longest_pause(spans, begin, end):
    """The longest time between `begin` and `end` that no span covers."""
    longest, at = 0.0, begin
    for start, over in sorted(spans):
        longest, at = max(longest, min(start, end) - at), max(at, over)
    return max(longest, end - at)


def certificate_faults(faults, machines, certificates):
    """Where a certificate ended before the next one was issued: a fault of its own where other faults left no time to renew it, else a finding."""
    found, findings = [], []
    for machine, ends in certificates.items():
        hindrances = [(one.start, float("inf") if one.end is None else one.end) for one in faults if one.kind in NO_RENEWAL and one.machine in (None, machine)]
        for end, after in zip(sorted(ends), sorted(ends)[1:] + [float("inf")]):
            issued = after - LIFE
            if issued <= end:
                continue
            if longest_pause(hindrances, end - LIFE * (1 - RENEWED), end) <= RENEWAL_PAUSE:
                found.append(Fault("certificate-over", machine, machines[machine], end, issued if issued < float("inf") else None))
            elif issued < float("inf"):
                findings.append(f"{machine}: its certificate ended {issued - end:.1f} s before the next one was issued, at {end:.0f}, without a fault that explains it")
    return found, findings


def belongs(loss, fault, whose, service_of_address):
    """Whether a request is one of those that an allowance of this fault names."""
    if whose == "own":
        return loss["from"] == fault.machine
    return service_of_address(loss["to"]) == fault.service and loss.get("by") in (None, fault.machine)


@dataclasses.dataclass
class Verdict:
    """`explained` has, for each loss, the faults that allow it, with their allowance; `unexplained` has none."""

    explained: list
    unexplained: list
    #: Sentences about anything else that must not be.
    findings: list


class Judge:
    """`certificates` has for each machine when each of its certificates ends."""

    def __init__(self, faults, records, machines, service_of_address, certificates):
        self.machines, self.service_of_address = machines, service_of_address
        more, self.expired = certificate_faults(faults, machines, certificates)
        self.faults = faults + more
        self.losses = [one for one in records if "lost" in one]
        self.seconds = [one for one in records if "second" in one]

    def explanations(self, loss):
        return [(fault, allow) for fault in self.faults for allow in COSTS[fault.kind].allows
                if loss["lost"] in allow.flows and fault.touches(loss["begin"], loss["end"], allow.after, allow.until)
                and belongs(loss, fault, allow.whose, self.service_of_address)]

    def active(self, begin, end):
        return [fault for fault in self.faults if fault.touches(begin, end)]

    def verdict(self):
        explained, unexplained = [], []
        for loss in self.losses:
            reasons = self.explanations(loss)
            (explained if reasons else unexplained).append((loss, reasons))
        return Verdict(explained, [loss for loss, _ in unexplained], self.excesses(explained) + self.absences() + self.expired)

    def sent(self, fault, allow):
        """Requests that the allowance names, answered while it holds."""
        count = 0
        for one in self.seconds:
            second = one["second"]
            if one["flow"] not in allow.flows or not fault.touches(second, second + 1, allow.after, allow.until):
                continue
            service = self.service_of_address(one["from"])
            count += one["ok"] if (one["from"] == fault.machine if allow.whose == "own" else service == fault.service) else 0
        return count

    def excesses(self, explained):
        """Faults that cost a larger share than is allowed; only losses that nothing else explains count."""
        alone = collections.Counter()
        for _, reasons in explained:
            if len(reasons) == 1:
                fault, allow = reasons[0]
                alone[id(fault), allow] += 1
        found = []
        for fault in self.faults:
            for allow in COSTS[fault.kind].allows:
                lost = alone[id(fault), allow]
                total = lost + self.sent(fault, allow)
                if lost > allow.share * total:
                    found.append(f"{fault}: {lost} of {total} {', '.join(FLOWS[flow] for flow in allow.flows)} lost, {allow.share:.0%} is allowed")
        return found

    def well_again(self, fault):
        """When its machine has to serve again: what has to happen for that may be hindered by other faults meanwhile."""
        moment = fault.until()
        hindrances = sorted((one for one in self.faults if one.kind in HINDRANCES and one.machine in (None, fault.machine)), key=lambda one: one.start)
        for one in hindrances:
            end = float("inf") if one.end is None else one.end + RESUMED
            if one.start <= moment < end and end > fault.start:
                moment = end
        return moment

    def absences(self):
        """Machines that answered nothing after a fault although they had to be well."""
        if not self.seconds:
            return ["no request was answered at all"]
        over, found = max(one["second"] for one in self.seconds), []
        for machine in self.machines:
            answered = sorted({one["second"] for one in self.seconds if one["flow"] == "http" and machine in one["by"]})
            out = [fault for fault in self.faults if COSTS[fault.kind].out and fault.machine == machine]
            for fault in self.faults:
                if fault.machine not in (None, machine) or fault.end is None:
                    continue
                begin = self.well_again(fault)
                end = begin + SEEN_WITHIN
                busy = any(other.touches(begin, end) for other in out if other is not fault)
                if end < over and not busy and not any(begin <= second <= end for second in answered):
                    found.append(f"{machine} answered nothing from {begin:.0f} to {end:.0f}, after {fault}")
        return sorted(set(found))

    def rows(self, verdict):
        """For each kind: occurrences, requests meanwhile, losses that are allowed, losses that nothing explains."""
        rows = []
        for kind, cost in COSTS.items():
            happened = [fault for fault in self.faults if fault.kind == kind]
            requests = sum(one["ok"] for one in self.seconds if any(fault.touches(one["second"], one["second"] + 1) for fault in happened))
            allowed = sum(1 for _, reasons in verdict.explained if any(fault.kind == kind for fault, _ in reasons))
            bad = sum(1 for loss in verdict.unexplained if any(fault.touches(loss["begin"], loss["end"]) for fault in happened))
            if happened:
                rows.append((kind, len(happened), requests, allowed, bad, cost.title))
        return rows
