"""Slurm's commands as small scripts: what they answer is a test's to say, what they were asked is kept."""

import subprocess
from pathlib import Path

from tests.training.runs import REPOSITORY

FUNCTIONS = REPOSITORY / "slurm" / "functions.sh"
RESTARTS = "declare -A RESTARTS=([broken]=2 [node_lost]=3 [out_of_memory]=1)"


class Commands:
    """A folder to put on PATH, and the calls of each command in the order they came."""

    def __init__(self, folder: Path):
        self.folder, self.said = folder / "bin", folder / "said"
        for path in (self.folder, self.said):
            path.mkdir()
        for name in ("scontrol", "squeue", "sinfo", "scancel", "srun"):
            self.answer(name, "exit 0")

    def answer(self, name: str, body: str) -> None:
        """What a command does, in bash; $CALL is the number of this call, counted from 1."""
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "$*" >>"{self.said / name}"\nCALL=$(wc -l <"{self.said / name}")\n{body}\n')
        path.chmod(0o755)

    def calls(self, name: str) -> list[str]:
        """The words of each call of a command."""
        path = self.said / name
        return path.read_text().splitlines() if path.exists() else []

    def environment(self, **more: str) -> dict[str, str]:
        """Of the script of job 7 on four nodes."""
        slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-3]", "SLURM_JOB_PARTITION": "main"}
        return {"PATH": f"{self.folder}:/usr/bin:/bin", "SHARDLINE_CONTROLLER_PATIENCE": "20", **slurm, **more}

    def script(self, run: Path, text: str, num_nodes: int = 4) -> subprocess.CompletedProcess[str]:
        """Runs some lines after the functions of a job's script."""
        head = f"RUN='{run}' NODES={num_nodes} FEWEST={num_nodes} REQUEUE=1 NODES_FILE='{run}/nodes.jsonl'\n{RESTARTS}"
        lines = f"set -uo pipefail\n{head}\nsource '{FUNCTIONS}'\npause() {{ sleep 0.05; }}\n{text}"
        command = ["bash", "-c", lines]
        return subprocess.run(command, env=self.environment(), capture_output=True, text=True, timeout=60, check=False)
