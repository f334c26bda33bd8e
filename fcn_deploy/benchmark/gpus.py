"""What nvidia-smi tells of memory that is in use."""

from __future__ import annotations

import subprocess

from fcn_deploy.doctor.gpu import SMI, SMI_TIMEOUT_S


def memory_used_mib(program: str = SMI) -> float | None:
    """Memory in use on the first GPU, by all processes; ``None`` where nobody tells."""
    command = [program, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SMI_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    first = ended.stdout.strip().splitlines()[:1]
    text = first[0].strip() if ended.returncode == 0 and first else ""
    return float(text) if text.isdecimal() else None  # [N/A] on Jetsons
