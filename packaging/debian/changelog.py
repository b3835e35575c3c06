#!/usr/bin/env python3
"""Debian's changelog of CHANGELOG.md: changelog.py VERSION < CHANGELOG.md

What is unreleased belongs to VERSION. Debian wants a time for each version; what is unreleased has
that of the last commit (or SOURCE_DATE_EPOCH), so that the same commit makes the same package."""

import os
import re
import subprocess
import sys
import textwrap
from datetime import datetime, timezone
from email.utils import format_datetime

MAINTAINER = "vm-agent maintainers <maintainers@vm-agent.io>"


def now() -> datetime:
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        commit = subprocess.run(["git", "log", "-1", "--format=%ct"], capture_output=True, text=True)
        epoch = commit.stdout.strip() or "0"
    return datetime.fromtimestamp(int(epoch), timezone.utc)


def entries(text: str) -> list[str]:
    """The points of a section, each on one line."""
    points: list[str] = []
    for line in text.splitlines():
        if line.startswith("- "):
            points.append(line[2:])
        elif line.startswith("  ") and points:
            points[-1] += " " + line.strip()
    return [point.replace("`", "") for point in points]


def main() -> None:
    current = sys.argv[1]
    sections = re.split(r"^## ", sys.stdin.read(), flags=re.M)[1:]
    for section in sections:
        head, _, body = section.partition("\n")
        found = re.match(r"\[(.+?)\](?: - (\d{4}-\d\d-\d\d))?", head)
        if not found or not (points := entries(body)):
            continue
        version = current if found[1] == "Unreleased" else found[1]
        when = datetime.fromisoformat(found[2]).replace(tzinfo=timezone.utc) if found[2] else now()
        print(f"vm-agent ({version}-1) unstable; urgency=medium\n")
        for point in points:
            print(textwrap.fill(point, 79, initial_indent="  * ", subsequent_indent="    ", break_on_hyphens=False))
        print(f"\n -- {MAINTAINER}  {format_datetime(when)}\n")


main()
