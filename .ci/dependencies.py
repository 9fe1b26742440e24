#!/usr/bin/env python3
"""What the manifest promises about dependencies and no compiler checks.

1. Everything that users build names a rust-version up to ours, or none.
2. The binary holds no reqwest, and one version each of what would be costly twice.
"""

import json
import subprocess
import sys

SINGLE = ["hyper", "rustls"]


def cargo(*arguments):
    return subprocess.run(["cargo", *arguments], check=True, capture_output=True, text=True).stdout


def tree(*arguments):
    """(name, version) of every package of a dependency tree."""
    lines = cargo("tree", "--locked", "--target", "all", "--prefix", "none", "--no-dedupe", "--format", "{p}", *arguments)
    return {(line.split()[0], line.split()[1].removeprefix("v")) for line in lines.splitlines() if line}


def number(version):
    return tuple(int(part) for part in version.split("."))[:2]


packages = json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]
needs = {(package["name"], package["version"]): package["rust_version"] for package in packages}
ours = next(package["rust_version"] for package in packages if package["name"] == "tower-openrouter")
users = tree("--all-features", "--edges", "normal,build")
binary = tree("--features", "cli", "--edges", "normal")

problems = [
    f"{name} {version} needs Rust {needs[name, version]}, but we promise {ours}"
    for name, version in sorted(users)
    if needs[name, version] and number(needs[name, version]) > number(ours)
]
problems += [f"the binary depends on {name} {version}" for name, version in sorted(binary) if name == "reqwest"]
for single in SINGLE:
    versions = sorted(version for name, version in binary if name == single)
    if len(versions) != 1:
        problems.append(f"the binary depends on {len(versions)} versions of {single}: {', '.join(versions)}")

print(f"{len(users)} packages within Rust {ours}; {len(binary)} packages in the binary")
for problem in problems:
    print(f"error: {problem}", file=sys.stderr)
sys.exit(bool(problems))
