"""Where numbers come from: which weights, which code."""

import hashlib
import json
import subprocess
from pathlib import Path

from kogpt.adapters.files import CONFIG_NAME, WEIGHTS_NAME
from kogpt.checkpoint.manifest import MANIFEST_NAME

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = {".py", ".cpp", ".cu", ".h"}


def fingerprint(folder: Path) -> str:
    """A hash that tells the weights of a folder from others.

    That of the manifest, which holds the hashes of all files (`kogpt verify` tells whether they are
    still those); of an adapter, of its two files; of a folder with neither, as `state`.
    """
    if (folder / CONFIG_NAME).is_file():
        parts = [(folder / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)]
        return hashlib.sha256(b"".join(parts)).hexdigest()
    manifest = folder / MANIFEST_NAME
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    return state(folder)


def state(folder: Path) -> str:
    """A hash of names, sizes and times of a folder's files, on one machine."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def code() -> str:
    """A hash of the sources that run, committed or not."""
    digest = hashlib.sha256()
    for path in sorted(path for path in PACKAGE.rglob("*") if path.suffix in SOURCES):
        digest.update(f"{path.relative_to(PACKAGE)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def commit() -> str | None:
    """The commit of the checkout that runs, with "+changes" where it has any; None outside one."""
    if not (PACKAGE.parent / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        return head + ("+changes" if _git("status", "--porcelain", "--", str(PACKAGE)) else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or a damaged checkout
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PACKAGE.parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
