"""Runs the test classes in several processes at once, each with a lab of its own: most tests wait for most of their time.

The parent hands out class by class, prints the whole output of each in one piece when it is finished, and closes with one
summary in unittest's words. A worker that dies, and a class that nobody is left to run, are errors.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
import unittest

#: What makes the program a worker: its jobs come on standard input, and its answers go to standard output.
ROLE = "--worker"
COUNTED = ("failures", "errors", "skipped", "expectedFailures", "unexpectedSuccesses")


def work(module, up):
    """A worker's whole life: brings its lab up, and runs the tests of each job in it."""
    # Tests and what they start write to the job's file, and read nothing.
    jobs, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    put(os.devnull, 0)
    put(sys.argv[2], 1, 2)
    up()
    print("up", file=answers, flush=True)
    for job in map(json.loads, jobs):
        put(job["output"], 1, 2)
        print(json.dumps(outcome(module, job["tests"])), file=answers, flush=True)


def outcome(module, tests):
    """Runs tests by their names; says how many there were, and how many ended in which way."""
    result = unittest.TextTestResult(unittest.TextTestRunner().stream, True, 2)
    unittest.defaultTestLoader.loadTestsFromNames(tests, module).run(result)
    result.printErrors()
    sys.stdout.flush()
    sys.stderr.flush()
    return {"ran": result.testsRun, **{name: len(getattr(result, name)) for name in COUNTED}}


def put(path, *descriptors):
    """Opens a file in the place of others."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in descriptors:
        os.dup2(file, descriptor)
    os.close(file)


class Pool:
    """The parent: `jobs` are names of classes with the names of their tests, in the order in which they are begun."""

    def __init__(self, jobs, number):
        self.jobs, self.lock = list(jobs), threading.Lock()
        self.counts = dict.fromkeys(("ran", *COUNTED), 0)
        self.number, self.started, self.workers, self.ending = min(number, len(self.jobs)), time.monotonic(), [], False

    def run(self):
        """Runs all; returns whether all is well."""
        with tempfile.TemporaryDirectory(prefix="vm-agent-outputs-") as directory:
            self.directory = pathlib.Path(directory)
            threads = [threading.Thread(target=self.serve, args=(self.directory / f"worker-{one}",)) for one in range(self.number)]
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            finally:
                # A signal came: the labs go, too.
                self.ending = True
                for worker in self.workers:
                    worker.terminate()
                for worker in self.workers:
                    worker.wait()
        for name, _ in self.jobs:
            self.add(name, "nobody is left to run it\n", {"ran": 1, "errors": 1})
        return self.summary()

    def serve(self, log):
        """Starts a worker, and gives it jobs until none is left or it dies."""
        with self.lock:
            if self.ending:
                return
            worker = subprocess.Popen([sys.executable, *sys.argv, ROLE, log], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self.workers.append(worker)
        if not worker.stdout.readline():
            text = f"{read(log)}a worker ended with {worker.wait()} before its lab was up\n"
            self.add(log.name, text, {"ran": 1, "errors": 1})
            return
        while job := self.next():
            name, tests = job
            output, began = self.directory / name, time.monotonic()
            print(json.dumps({"tests": tests, "output": str(output)}), file=worker.stdin, flush=True)
            answer = worker.stdout.readline()
            took = f"{name}: {time.monotonic() - began:.0f} s"
            if answer:
                self.add(took, read(output), json.loads(answer))
            else:
                self.add(took, f"{read(output)}\nERROR: {name}: its worker ended with {worker.wait()}\n", {"ran": 1, "errors": 1})
                return
        worker.stdin.close()
        worker.wait()

    def next(self):
        with self.lock:
            return self.jobs.pop(0) if self.jobs and not self.ending else None

    def add(self, title, text, counts):
        with self.lock:
            print(f"== {title} ({len(self.jobs)} to begin)\n{text}", file=sys.stderr, flush=True)
            for name, count in counts.items():
                self.counts[name] += count

    def summary(self):
        """The end of a run of unittest."""
        ran, took = self.counts["ran"], time.monotonic() - self.started
        bad = {name: count for name in ("failures", "errors", "unexpectedSuccesses") if (count := self.counts[name])}
        told = ", ".join(f"{name}={count}" for name in COUNTED if (count := self.counts[name]))
        print(f"{'-' * 70}\nRan {ran} test{'' if ran == 1 else 's'} in {took:.3f}s\n\n{'FAILED' if bad else 'OK'}{f' ({told})' if told else ''}", file=sys.stderr, flush=True)
        return not bad


def read(path):
    return path.read_text(errors="replace") if path.exists() else ""
