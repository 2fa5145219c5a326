"""One run from recipe to release: build, train, score, release. Everything heavy that `pretrain.fit` wires together."""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch

from data_shards.stream import Stream
from encoders.dual import DualEncoder
from encoders.heads import describe_head
from encoders.release import release_run
from pretrain import build, launch, runs, studies
from pretrain.callbacks.checkpoints import Checkpoints
from pretrain.callbacks.metrics import Metrics
from pretrain.callbacks.preemption import STOPPED, Preemption
from pretrain.callbacks.progress import Progress
from pretrain.callbacks.restoring import Restore
from pretrain.callbacks.zero_shot import ZeroShot
from pretrain.checkpoint import read_trainer
from pretrain.config import dump
from pretrain.errors import ConfigError
from pretrain.finishing import keep_base, require_base
from pretrain.memory import keep_freed_memory
from pretrain.module import Pretraining
from pretrain.objectives.base import Objective, Surroundings
from pretrain.schema import Recipe
from pretrain.state import trained_weights
from pretrain.text_cache import text_cache


class Evaluation(Protocol):
    """What `pretrain.fit` lends to a run: evaluators, which this package does not know."""

    def check(self, data: studies.Data) -> None:
        """Raises ConfigError where these studies cannot be scored."""

    def select(self, model: DualEncoder, data: studies.Data, tokenize: Any, precision: str) -> dict[str, float]:
        """Scores of the selection split by name, `macro_auroc` among them."""

    def test(self, release: Path, data: studies.Data, precision: str, out: Path, more: Sequence[Any]) -> None:
        """Score a release on the test split, write the results into `out`, with `more`, and print them."""


class Merging(Protocol):
    """The same of `finish`: what a run gained and forgot, and the mean of its first and last weights."""

    def check(self, data: studies.Data) -> None:
        """Raises EvalError or DataError where something could not be scored in the end."""

    def merge(self, run: Path, precision: str) -> list[Any]:
        """Write RUN/release between RUN/base and RUN/adapted; what was measured, which is printed."""

    def show(self, run: Path, found: list[Any]) -> None:
        """Results and page of nothing but that."""


def train(
    recipe: Recipe, folder: Path, resume: bool, evaluation: Evaluation | None, merging: Merging | None = None
) -> int:
    """Train in `folder`, from its last checkpoint with `resume`. Returns the process's exit code: 0, or 143 when
    stopped."""
    quiet()
    if recipe.train.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "train.accelerator: gpu, and torch sees no GPU here",
            why="there is nothing to run on",
            fix="check nvidia-smi and that this torch is a CUDA build, or give --train.accelerator auto",
        )
    if not build.on_gpu(recipe):
        keep_freed_memory()
        same_bits()
    launch.follow_launcher()
    first = launch.rank() == 0
    checkpoint = runs.checkpoint_to_resume(folder) if resume else None
    state = read_trainer(checkpoint) if checkpoint else None
    if checkpoint:
        runs.refuse_changes(checkpoint, recipe)
        runs.refuse_changed_files(folder, recipe)
    elif resume and first:
        print(f"{folder} has no checkpoint yet: it starts again from step 0")
    chunk, batch_size = recipe.train.chunk, recipe.train.batch_size
    if first and chunk is not None and chunk >= batch_size:
        print(f"note: train.chunk is {chunk} and train.batch_size {batch_size}: no batch is cut", file=sys.stderr)

    torch.manual_seed(recipe.seed)  # weights at birth
    dual, objectives = build.build_model(recipe, with_init=state is None), build.build_objectives(recipe)
    data = studies.build_data(recipe)
    if evaluation is not None:
        evaluation.check(data)
    if merging is not None:
        merging.check(data)
        if checkpoint:
            require_base(folder)
    around = Surroundings(dual, data.shards.label_names, data.train_labels, data.train_captions, objectives)
    for objective in objectives:
        objective.attach(around)
    if first and not resume:
        runs.create(folder, recipe)
    if first and merging is not None and not checkpoint:
        keep_base(folder, dual, data, model_json(recipe, dual, data, []))
    tokenize, precision = build.tokenizer(recipe), build.precision(recipe)
    weights = trained_weights(checkpoint, state) if checkpoint and state else None
    cache = text_cache(recipe, dual, data, tokenize, weights)
    module = Pretraining(recipe, dual, objectives, {"text:units": cache.text_units} if cache else None)

    preemption = Preemption()
    zero_shot = None
    if evaluation is not None and len(data.select_rows):
        scorer = functools.partial(evaluation.select, data=data, tokenize=tokenize, precision=_short(precision))
        zero_shot = ZeroShot(scorer, recipe.evaluate.every_steps)
    noun = "volumes" if recipe.data.geometry.kind == "volume" else "images"
    progress = Progress(noun)
    checkpoints = Checkpoints(
        folder / runs.CHECKPOINTS,
        recipe.checkpoint.every_steps,
        recipe.checkpoint.keep_top,
        model_json(recipe, dual, data, objectives),
        dump(recipe),
        zero_shot,
        preemption,
    )
    # Order matters: restored first; scored before saved; the signal agreed on before the checkpoint that it asks for;
    # numbers of a step on disk before its checkpoint, or a run killed between the two would lack them for ever.
    callbacks: list[L.Callback | None] = [
        Restore(checkpoint, state) if checkpoint and state else None,
        preemption,
        zero_shot,
        Metrics(folder),
        checkpoints,
        progress,
    ]
    trainer = make_trainer(recipe, precision, [c for c in callbacks if c is not None])
    labels = any("labels" in objective.reads for objective in objectives)
    stream = build.training_stream(
        recipe, data, tokenize, launch.rank(), recipe.train.devices, 0, labels, to_gpu=build.on_gpu(recipe)
    )
    if state:
        stream.load_state_dict(state["stream"])
    if len(stream):
        trainer.fit(module, stream)
    elif first:
        print(f"{folder} is finished ({recipe.train.steps} steps): it is released and scored again")
    if preemption.requested:
        if first:
            resume_words = f"python -m pretrain.fit --resume {folder}"
            print(f"stopped after step {module.step_number}; go on with: {resume_words}", flush=True)
            preemption.requeue()
        return STOPPED
    with _others_wait():
        if first:
            say_drawn(stream)
            if progress.tokens.texts:
                print(f"text     {progress.tokens}")
            finish(recipe, folder, data, evaluation, merging, _short(precision))
    return 0


@contextlib.contextmanager
def _others_wait() -> Iterator[None]:
    """Rank 0 works while the others wait, as long as it takes: `srun --wait` would end it soon after they have left."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        yield  # one process, or a finished run that is only released again
        return
    patient: Any = torch.distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=7))
    yield
    try:
        torch.distributed.barrier(patient)
    except RuntimeError:  # rank 0 has failed, and has said why
        sys.exit(1)
    torch.distributed.destroy_process_group()


def finish(
    recipe: Recipe,
    folder: Path,
    data: studies.Data,
    evaluation: Evaluation | None,
    merging: Merging | None,
    precision: str,
) -> None:
    """Release the best checkpoint, merged with the start of the run where that is asked for, score it as its users will
    load it, and say how to load it."""
    release = folder / runs.RELEASE
    release_run(folder, folder / runs.ADAPTED if merging else release, checkpoint="best", overwrite=True)
    found = [] if merging is None else merging.merge(folder, precision)
    if evaluation is not None and recipe.evaluate.final and len(data.test_rows):
        evaluation.test(release, data, precision, folder / runs.RESULTS, found)
    elif merging is not None:
        merging.show(folder, found)
    planar = recipe.data.geometry.kind != "volume"
    print(f"\nrun      {folder}\nrelease  {release}")
    if merging is not None:
        print(f"of       {folder / runs.BASE} and {folder / runs.ADAPTED}")
    if (folder / runs.REPORT).is_file():
        print(f"report   {folder / runs.REPORT}")
    if recipe.model.text is None:
        print("\nload it with plain timm:\n")
        print("    import timm" if planar else "    import encoders, timm  # encoders registers the 3D towers")
        print(f"    model = timm.create_model('local-dir:{release}', pretrained=True)")
        print("\nor together with its own preprocessing:\n")
        print(f"    import encoders\n    release = encoders.load('{release}')  # .model, .preprocess")
        return
    print("\nload it with plain open_clip:\n")
    print("    import open_clip" if planar else "    import encoders, open_clip  # encoders registers the 3D towers")
    print(f"    model, _, preprocess = open_clip.create_model_and_transforms('local-dir:{release}')")
    print("\nor together with its own preprocessing and tokenizer:\n")
    print(f"    import encoders\n    release = encoders.load('{release}')  # .model, .preprocess, .tokenizer")


def say_drawn(stream: Stream) -> None:
    """What was drawn from which source, and of which modality, where there is more than one."""
    for counts in stream.realised(stream.steps).values():
        if len(counts) > 1:
            total = max(1, sum(counts.values()))
            print("drawn    " + ", ".join(f"{name} {n} ({100 * n / total:.1f} %)" for name, n in counts.items()))


def same_bits() -> None:
    """Sums of a CPU's threads in one order: gradients of indexed rows are otherwise added as threads come, and two runs
    of one seed differ."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_trainer(recipe: Recipe, precision: str, callbacks: list[L.Callback]) -> L.Trainer:
    """Lightning's Trainer: devices, precision, DDP or FSDP2, SLURM. Loops, checkpoints and logs are ours."""
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    strategy: Any = "auto"
    if recipe.train.devices > 1:
        if recipe.train.strategy == "fsdp2":
            from lightning.pytorch.strategies import ModelParallelStrategy

            strategy = ModelParallelStrategy(data_parallel_size=recipe.train.devices, tensor_parallel_size=1)
        else:
            strategy = "ddp"
    plugins: list[Any] = []
    if not launch.by_torchrun():  # said outright: Lightning takes any process of a SLURM job for one of srun's
        plugins = [SLURMEnvironment(auto_requeue=False) if launch.by_slurm() else LightningEnvironment()]
    trainer = L.Trainer(
        accelerator=recipe.train.accelerator,
        devices=recipe.train.devices,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        plugins=plugins,
        max_epochs=1,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    # Lightning's SIGTERM handler broadcasts from inside the handler, a deadlock where one rank of two gets the signal;
    # ours (callbacks.preemption) are in place before the first step.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def model_json(recipe: Recipe, dual: DualEncoder, data: studies.Data, objectives: list[Objective]) -> dict[str, Any]:
    """What a release needs to know beside the weights."""
    beside = {"report": describe_head(dual.report)} if dual.report is not None else {}
    return {
        "name": recipe.name,
        "model_cfg": dual.model_cfg,
        "geometry": data.geometry.to_json(),
        "view": data.eval_view.to_json(),
        "recipe_sha256": hashlib.sha256(dump(recipe).encode()).hexdigest(),
        "manifest": data.shards.manifest_hash,
        "heads": beside | {name: describe_head(head) for o in objectives for name, head in o.released().items()},
    }


def quiet() -> None:
    """Keep Lightning's tips and warnings about loops we own out of the user's terminal."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def _short(precision: str) -> str:
    return "bf16" if precision.startswith("bf16") else "fp32"
