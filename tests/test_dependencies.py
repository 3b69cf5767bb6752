"""The lock files pin and hash what the requirements bring; installing says when it can't be verified."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import dependencies

ROOT = Path(__file__).resolve().parents[1]


def pins(text: str) -> dict[str, str]:
    return {
        dependencies.normalised(name): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)
    }


LOCKS = {**dependencies.LOCKS, dependencies.IPU_REQUIREMENTS: dependencies.IPU_LOCK}


@pytest.mark.parametrize("requirements", LOCKS)
def test_a_lock_file_pins_and_hashes_what_its_requirements_bring(requirements: str) -> None:
    text = (ROOT / LOCKS[requirements]).read_text()
    locked = pins(text)
    for name, version in pins((ROOT / requirements).read_text()).items():
        if name == "torch":
            assert name not in locked
        else:
            assert locked.get(name) == version, f"./dev lock: {name} is {version} in {requirements}"
    assert not any(name.startswith(("nvidia-", "cuda-")) for name in locked)
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    blocks = re.split(r"^(?=[\w.-]+==)", text, flags=re.M)[1:]
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_lock_files_agree() -> None:
    one, other = (pins((ROOT / lock).read_text()) for lock in dependencies.LOCKS.values())
    assert one.items() <= other.items()


def test_every_locked_package_has_its_licence_listed() -> None:
    page = dependencies.LICENCES.read_text()
    for name, requirements in dependencies.locked_packages().items():
        row = re.search(rf"^\| {re.escape(name)} \| ([^|]+) \| `{requirements}` \|$", page, re.M)
        assert row, f"./dev licences: {name}"


def test_packages_of_other_builds_are_not_locked() -> None:
    blocks = ("torch==2 \\", "    --hash=sha256:1", "numpy==1 \\", "    --hash=sha256:2", "nvidia-x==1 \\")
    compiled = "\n".join(["# comment", *blocks, "    --hash=sha256:3"])
    text = dependencies.locked_text(compiled, "requirements.txt")
    assert text.splitlines()[1:] == ["numpy==1 \\", "    --hash=sha256:2"]


PIP = """#!{python}
import sys
with open({log!r}, "a") as log:
    print(*sys.argv[1:], file=log)
if "--require-hashes" in sys.argv:
    sys.exit({answer!r} or 0)
"""


@pytest.mark.parametrize(
    ("answer", "locked", "outcome"),
    [
        ("", True, None),
        ("", False, None),
        (
            "ERROR: No matching distribution found for tqdm==4.70.1",
            True,
            "the index has no file of tqdm",
        ),
        ("ERROR: something else", True, "something else"),
        ("THESE PACKAGES DO NOT MATCH THE HASHES", True, dependencies.HashMismatch),
    ],
)
def test_installing_says_when_hashes_are_not_verified(
    tmp_path: Path, answer: str, locked: bool, outcome: object
) -> None:
    """With a program in pip's place that answers as pip does."""
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(PIP.format(python=sys.executable, log=str(log), answer=answer))
    python.chmod(0o755)
    if outcome is dependencies.HashMismatch:
        with pytest.raises(dependencies.HashMismatch, match="DO NOT MATCH"):
            dependencies.install(python, "requirements.txt")
        assert len(log.read_text().splitlines()) == 1  # nothing was installed without hashes
        return
    warning = dependencies.install(python, "requirements.txt", locked=locked)
    calls = log.read_text().splitlines()
    assert ("--require-hashes" in calls[0]) == locked and calls[-1].endswith("-r requirements.txt")
    assert (warning is None) == (outcome is None)
    if warning:
        assert str(outcome) in warning and "unverified" in warning


def test_a_failed_installation_is_an_error(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nraise SystemExit(1)\n")
    python.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        dependencies.install(python, "requirements.txt")


def test_an_audit_counts_only_what_a_service_knows() -> None:
    known = {"name": "a", "version": "1", "vulns": [{"id": "CVE-1", "aliases": []}]}
    clean = {"name": "b", "version": "2", "vulns": []}
    unknown = {"name": "c", "skip_reason": "Dependency not found"}
    report = json.dumps({"dependencies": [known, clean, unknown], "fixes": []})
    assert dependencies.audited(report) == {"a 1": ["CVE-1"], "b 2": []}
    assert dependencies.audited("") == dependencies.audited("{}") == {}
