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
    """Write the manifest of `checkpoint`: the SHA-256 of every file."""
    sealed = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            sealed[str(path.relative_to(checkpoint))] = _sha256(path)
    write_whole(checkpoint / MANIFEST, json.dumps(sealed, indent=1))


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, or None where every file is as it was sealed."""
    try:
        sealed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in sealed.items():
            path = checkpoint / name
            if not path.exists():
                return f"{name} is missing"
            if _sha256(path) != digest:
                return f"{name} has changed since it was saved"
    except FileNotFoundError:
        return "it has no manifest: it was not finished"
    except (ValueError, AttributeError):
        return f"{MANIFEST} is damaged"
    if not any(name.startswith(("optimizer", "global_step")) for name in sealed):  # DeepSpeed's is in global_step*
        return "it has no optimizer state (training.save_only_model)"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
