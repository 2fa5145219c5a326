"""Probes of frozen features: `python -m eval_zero_shot.probe`. See docs/probe.md."""

from eval_zero_shot.probe.fitting import probe
from eval_zero_shot.probe.split import Question, Split

__all__ = ["Question", "Split", "probe"]
