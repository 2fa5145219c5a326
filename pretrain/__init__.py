"""Pretraining: a recipe (`config`, `schema`), a Lightning module, objectives, and `python -m pretrain.fit`."""
