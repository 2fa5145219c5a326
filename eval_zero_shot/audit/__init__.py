"""Audit of zero-shot scores: leakage from training, shortcuts, and controls that take the image away.

Run with `python -m eval_zero_shot.audit`; in Python, `eval_zero_shot.audit.protocol.score_audit`.
"""
