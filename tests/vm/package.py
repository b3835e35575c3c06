"""The package under test: as `make package` made it, with another program in it, or as a later version."""

import os
import pathlib
import shutil
import subprocess
import tomllib

TOP = pathlib.Path(__file__).parents[2]
#: The program of the package; another one takes its place where VM_AGENT names it.
PROGRAM = TOP / "target/release/vm-agent"
AGENT = pathlib.Path(os.environ.get("VM_AGENT", PROGRAM)).absolute()
VERSION = tomllib.loads((TOP / "Cargo.toml").read_text())["package"]["version"]


def made():
    """The package that `make package` made."""
    architecture = subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()
    file = TOP / f"target/package/vm-agent_{VERSION}-1_{architecture}.deb"
    if not file.exists():
        raise SystemExit(f"{file} is missing: run `make package`")
    return file


def under_test(directory):
    """The package; made anew in this directory where it has to have another program."""
    return made() if AGENT == PROGRAM else again(made(), directory / "vm-agent.deb", program=AGENT)


def again(file, target, program=None, version=None):
    """The package with another program, or of another version."""
    tree = target.with_suffix(".tree")
    shutil.rmtree(tree, ignore_errors=True)
    subprocess.run(["dpkg-deb", "--raw-extract", file, tree], check=True)
    if program:
        shutil.copy(program, tree / "usr/bin/vm-agent")
        subprocess.run(["strip", tree / "usr/bin/vm-agent"], check=True)
    if version:
        control = tree / "DEBIAN/control"
        lines = control.read_text().splitlines()
        control.write_text("".join(f"Version: {version}\n" if line.startswith("Version:") else f"{line}\n" for line in lines))
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, target], check=True, capture_output=True)
    shutil.rmtree(tree)
    return target
