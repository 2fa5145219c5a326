"""One small recipe that is right, for the tests that make it wrong."""

from __future__ import annotations

RECIPE = """\
name: trial
data:
  source: {kind: phantom, studies: 40, seed: 3}
  geometry:
    kind: volume
    spacing_mm: [6, 6, 6]
    windows:
      - [-1000, 200]
      - [-100, 200]
  train_view: {kind: random, size: [56, 64, 80]}
  eval_view: {kind: centre, size: [56, 64, 80]}
  units: {report: true, sentences: true}
model:
  image: {name: voxvit_tiny.p-8x16x16_i-56x64x80_c-2}
objectives:
  - {name: sentence}
  - {name: contrastive, weight: 0.5, label_smoothing: 0.1}
optim: {lr: 1e-4, warmup_steps: 10}
train:
  steps: 100
"""
