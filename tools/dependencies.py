"""The lock files, the list of licences, and the audit, for `./dev`. Needs Python 3.11 and pip alone.

A lock file pins every package that a requirements file brings, with the hashes of all its files, for every
Python from 3.11 on (an IPU host's: from 3.8 on) and every platform. It names no index: pip's configuration
does. PyTorch, and what only its builds for GPUs need, is installed by version alone, since each of its
indices has other files.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LICENCES = ROOT / "docs" / "licences.md"
LOCKS = {"requirements.txt": "requirements.lock", "requirements-dev.txt": "requirements-dev.lock"}
# An IPU host installs it beside PopTorch, without ./dev.
IPU_REQUIREMENTS, IPU_LOCK = "requirements-ipu.txt", "requirements-ipu.lock"
_BY_VERSION = re.compile(r"torch|triton|(nvidia|cuda)-.*")
_MISSING = re.compile(r"No matching distribution found for (\S+)")
_UV, _PIP_AUDIT = "uv==0.13.9", "pip-audit==2.10.1"


class HashMismatch(Exception):
    """The index has a file with another content than the lock file's; the text is pip's."""


def install(python: Path, requirements: str, *, locked: bool = True) -> str | None:
    """Installs a requirements file, verified by its lock file where the index has all of its files.

    The text of a warning if it hasn't: then everything comes by version alone, as without `locked`. Raises
    HashMismatch, and CalledProcessError if the packages can't be installed at all.
    """
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install"]
    lock, warning = LOCKS[requirements], None
    if locked:
        command = [*pip, "--no-deps", "--require-hashes", "-r", lock]
        done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        if "DO NOT MATCH THE HASHES" in done.stderr:
            raise HashMismatch(done.stderr)
        if done.returncode:
            missing = _MISSING.search(done.stderr)
            why = f"the index has no file of {missing[1]}" if missing else done.stderr.strip()
            warning = f"{lock} can't be used ({why}): packages are installed by version alone, unverified"
    # PyTorch; everything, if the lock file wasn't used.
    subprocess.run([*pip, "-r", requirements], cwd=ROOT, check=True)
    return warning


def write_locks() -> None:
    """Resolves the requirements files anew and writes the lock files. Needs an index with all files."""
    with _tool(_UV) as python:
        for requirements, lock in {**LOCKS, IPU_REQUIREMENTS: IPU_LOCK}.items():
            oldest = "3.8" if lock == IPU_LOCK else "3.11"
            words = ["--universal", "--python-version", oldest, "--generate-hashes", "--no-header"]
            words += ["--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet"]
            if requirements == "requirements-dev.txt":
                words += ["--constraint", LOCKS["requirements.txt"]]
            command = [str(python), "-m", "uv", "pip", "compile", requirements, *words]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            (ROOT / lock).write_text(locked_text(done.stdout, requirements))


@contextlib.contextmanager
def _tool(requirement: str) -> Iterator[Path]:
    """The Python of an environment that has a tool, and is removed after the block."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", requirement]
        subprocess.run(pip, check=True, timeout=600)
        yield python


def locked_text(compiled: str, requirements: str) -> str:
    """What a resolver wrote, without the packages that are installed by version alone."""
    kept = [f"# Every package of {requirements} but PyTorch, with its files' hashes. Written by ./dev lock."]
    is_kept = True
    for line in compiled.splitlines():
        name = package(line)
        if name is not None:
            is_kept = _BY_VERSION.fullmatch(name) is None
        if is_kept and line.strip() and not line.lstrip().startswith("#"):
            kept.append(line)
    return "\n".join(kept) + "\n"


def package(line: str) -> str | None:
    """The package that a line of a lock file pins, in its normalised name; None for a hash or a comment."""
    found = re.match(r"([A-Za-z0-9][\w.-]*)==", line)
    return None if found is None else normalised(found[1])


def normalised(name: str) -> str:
    """A package's name as indices compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_packages() -> dict[str, str]:
    """Each package of the lock files, with the requirements file that needs it."""
    found: dict[str, str] = {}
    for requirements, lock in {**LOCKS, IPU_REQUIREMENTS: IPU_LOCK}.items():
        for line in (ROOT / lock).read_text().splitlines():
            name = package(line)
            if name is not None:
                found.setdefault(name, requirements)
    return found


def write_licences() -> None:
    """Writes docs/licences.md from the metadata of the installed packages: run it in `.venv`."""
    rows, known = [], {}
    if LICENCES.exists():  # of packages that this platform doesn't install
        known = dict(re.findall(r"^\| ([\w-]+) \| ([^|]+?) \|", LICENCES.read_text(), re.M))
    packages = {**locked_packages(), "torch": "requirements.txt"}
    for name, requirements in sorted(packages.items()):
        try:
            licence = licence_of(importlib.metadata.metadata(name))
        except importlib.metadata.PackageNotFoundError:
            licence = known.get(name, "not installed here")
        rows.append(f"| {name} | {licence} | `{requirements}` |")
    LICENCES.write_text(
        "# Licences of the packages that are installed\n"
        "<!-- Written by ./dev licences from the packages' metadata. -->\n\n"
        "None is part of this repository. The project's own licence is [LICENSE](../LICENSE).\n\n"
        "| package | licence | needed by |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    )


def licence_of(metadata: importlib.metadata.PackageMetadata) -> str:
    """The licence in a package's metadata: its expression, its classifiers, or the first line of its text."""
    fields = metadata.json
    expression = fields.get("license_expression")
    classifiers = [
        each.rpartition(" :: ")[2]
        for each in fields.get("classifier", [])
        if each.startswith("License :: ") and not each.endswith("OSI Approved")
    ]
    text = str(fields.get("license") or "").strip().splitlines()
    return str(expression or "; ".join(classifiers) or (text[0][:60] if text else "not stated")).replace(
        "|", "/"
    )


def audit() -> int:
    """Asks the services that know of vulnerabilities about the locked packages, and prints what they know.

    0: none is known; 1: some are; 2: no service knows the packages.
    """
    words = ["--disable-pip", "--require-hashes", "--timeout", "30", "--progress-spinner", "off"]
    words += ["-r", LOCKS["requirements-dev.txt"], "--format", "json"]
    with _tool(_PIP_AUDIT) as python:
        for service in ("pypi", "osv"):
            command = [str(python), "-m", "pip_audit", "--vulnerability-service", service, *words]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
            found = audited(done.stdout)
            if found:
                for name, known in sorted(found.items()):
                    if known:
                        print(f"{name}: {', '.join(known)}")
                print(
                    f"{service}: {len(found)} packages audited, {sum(map(bool, found.values()))} vulnerable"
                )
                return int(any(found.values()))
            print(
                f"no audit by {service}: {(done.stderr.strip() or 'it knows no package')[-300:]}",
                file=sys.stderr,
            )
    return 2


def audited(report: str) -> dict[str, list[str]]:
    """Each package that a service knows, with its vulnerabilities, from pip-audit's JSON."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError):
        return {}
    return {
        f"{each['name']} {each['version']}": [known["id"] for known in each["vulns"]]
        for each in packages
        if "skip_reason" not in each
    }


if __name__ == "__main__":
    write_licences()
