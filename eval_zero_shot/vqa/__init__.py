"""Closed visual questions, answered by scoring captions: `python -m eval_zero_shot.vqa`."""
