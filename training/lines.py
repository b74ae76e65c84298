"""The forms of lines that a run keeps in its folder: of events.jsonl, metrics.jsonl and slurm/jobs.jsonl.

Whoever reads such a file relies on these and on no more; see common/json_lines.py.
"""

from common.json_lines import FIGURE, NUMBER, Form

EVENT = Form(
    {"event": str},
    {
        "time": NUMBER,
        "attempt": str,
        "message": str,
        "exit_code": int,
        "job": int,
        "restart": int,
        "step": int,
        "stage": str,
        "node": str,
        "phase": str,
        "until": NUMBER,
        "seconds": NUMBER,
        "stalled_seconds": NUMBER,
        "why": str,
        "reason": str,
    },
)
STEP = Form({"loss": FIGURE, "tokens_per_second": NUMBER, "step_seconds": NUMBER})
"""A line of metrics about training; `loss`, null where it was no number, tells it from one of evaluation."""
EVALUATION = Form({"loss": NUMBER, "unigram_entropy": NUMBER}, {"sources": dict})
_FIGURES = ("grad_norm", "lr", "mfu", "memory_gb", "tokens_consumed", "samples_consumed", "time")
_SLOWEST: dict[str, type | tuple[type, ...]] = {"slowest_ratio": NUMBER, "slowest_rank": int, "slowest_node": str}
METRICS = Form(
    {"step": int},
    {"evaluation": EVALUATION, "sources": dict, **dict.fromkeys(_FIGURES, FIGURE), **_SLOWEST},
    with_key={"loss": STEP},
)
KEPT = Form({"step": int})
"""A line of metrics that a resume may keep: of it no more is asked."""
JOB = Form({"job": int, "stage": str}, {"time": NUMBER, "commands": (str, type(None)), "log": str})
