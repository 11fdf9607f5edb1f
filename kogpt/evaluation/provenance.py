"""Where numbers come from: which weights, which code."""

import hashlib
import json
import subprocess
from pathlib import Path

from kogpt.adapters.files import CONFIG_NAME, WEIGHTS_NAME
from kogpt.checkpoint.manifest import MANIFEST_NAME

PACKAGE = Path(__file__).resolve().parents[1]


def fingerprint(folder: Path) -> str:
    """A hash that changes with the weights of a folder.

    That of the manifest, which covers every byte; of an adapter, of its two files; of a folder
    with neither, of names, sizes and times of its files.
    """
    if (folder / CONFIG_NAME).is_file():
        parts = [(folder / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)]
        return hashlib.sha256(b"".join(parts)).hexdigest()
    manifest = folder / MANIFEST_NAME
    if manifest.is_file():
        return hashlib.sha256(manifest.read_bytes()).hexdigest()
    files = sorted(path for path in folder.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


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
