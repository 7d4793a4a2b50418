"""Files: written whole or not at all; and a checkpoint's manifest, by which each of its files is proved.

TRL and transformers write the checkpoints; but they write in place, take the highest number for the newest, and check
nothing. Here a checkpoint is valid only with its manifest, which is written last. The final model is upstream's too; it
is written once, after the last checkpoint.
"""

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `content` so that whoever reads it, also after a kill, finds the old file or the new, never half of one."""
    temporary = path.with_name(f"_{path.name}.tmp")  # what begins with _ is not uploaded: it may be gone in mid-upload
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)


def seal(checkpoint: Path) -> None:
    """Write the manifest of `checkpoint`: the size and SHA-256 of every file."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != MANIFEST]
    sealed = {str(p.relative_to(checkpoint)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    write_whole(checkpoint / MANIFEST, json.dumps(sealed, indent=1))


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was sealed."""
    try:
        entries = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        sealed = [(name, entry["bytes"], entry["sha256"]) for name, entry in entries.items()]
    except FileNotFoundError:
        return "it has no manifest: it was not finished"
    except (ValueError, AttributeError, TypeError, KeyError):
        return f"{MANIFEST} is damaged"
    for name, size, digest in sealed:
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if _sha256(path) != digest:
            return f"{name} has changed since it was saved"
    if not any(name.startswith(("optimizer", "global_step")) for name in entries):  # DeepSpeed's is in global_step*
        return "it has no optimizer state (training.save_only_model)"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
