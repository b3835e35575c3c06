"""What agents use: compared at the end of a run with its begin."""

import json
import pathlib

#: Resident memory may grow by caches and the allocator's pieces, never with what happened.
MEMORY_FACTOR, MEMORY_KB = 1.5, 8 * 1024
#: Connections that are just being opened or closed.
DESCRIPTORS = 16
#: Bytes of an agent's log for each minute and each fault. A fault is told in some lines, in debug builds as well; a log that
#: repeats itself many times a second is far above it.
LOG_PER_MINUTE, LOG_PER_FAULT = 64 * 1024, 32 * 1024


def field(pid, name):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return line.split()[1]
    return "0"


def command(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/exe").resolve().name, field(pid, "State")
    except OSError:
        return "gone", "X"


def look(world):
    """For each machine what its agent and the machine hold."""
    found = {}
    for name, machine in world.machines.items():
        pid = machine.agent_pid()
        programs = sorted(program for program, state in map(command, world.pids(name)) if program != "gone" and state != "Z")
        found[name] = {
            "memory_kb": int(field(pid, "VmRSS")), "descriptors": len(list(pathlib.Path(f"/proc/{pid}/fd").iterdir())),
            "processes": programs, "rules": machine.rules(), "log_bytes": len(machine.log()),
            "log": {"descriptors": sorted(str(path) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir())}}
    return found


def compare(before, after, minutes, faults):
    """Sentences about what has grown."""
    found = []
    for name, first in before.items():
        last = after[name]
        if last["memory_kb"] > first["memory_kb"] * MEMORY_FACTOR + MEMORY_KB:
            found.append(f"{name}: the agent's memory was {first['memory_kb']} kB and is {last['memory_kb']} kB")
        if last["descriptors"] > first["descriptors"] + DESCRIPTORS:
            found.append(f"{name}: the agent had {first['descriptors']} descriptors and has {last['descriptors']}")
        if last["processes"] != first["processes"]:
            found.append(f"{name}: its processes were {first['processes']} and are {last['processes']}")
        if last["rules"] != first["rules"]:
            gone = [line for line in first["rules"] if line not in last["rules"]]
            new = [line for line in last["rules"] if line not in first["rules"]]
            found.append(f"{name}: its redirect rules changed: gone {json.dumps(gone)}, new {json.dumps(new)}")
        grown, limit = last["log_bytes"] - first["log_bytes"], LOG_PER_MINUTE * max(1, minutes) + LOG_PER_FAULT * faults.get(name, 0)
        if grown > limit:
            found.append(f"{name}: the agent's log grew by {grown} bytes, {limit} are allowed")
    return found


def line(looked):
    return "; ".join(f"{name} {one['memory_kb'] // 1024} MB, {one['descriptors']} descriptors, {len(one['processes'])} processes, "
                     f"{len(one['rules'])} lines of rules, log {one['log_bytes'] // 1024} kB" for name, one in looked.items())
