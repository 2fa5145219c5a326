"""Zero-shot evaluation: embed once, then classify, retrieve and state intervals. Knows nothing about training."""

from eval_zero_shot.errors import EvalError
from eval_zero_shot.tasks import Finding, Task, load_task

__all__ = ["EvalError", "Finding", "Task", "load_task"]
