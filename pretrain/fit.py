"""Train a recipe: python -m pretrain.fit --config ct3d.yaml [--key.sub value ...]."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain import launch
from pretrain.config import dump, load_recipe, schema_help, split_argv
from pretrain.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0, 1 for an error that is explained, 143 when asked to stop).

    Nothing heavy is imported before the recipe has been checked, so a typo answers at once.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        args = split_argv(words)
        if args.help or not (args.config or args.resume):
            print(schema_help())
            return 0 if args.help else 2
        resume = Path(args.resume) if args.resume else None
        if resume is not None and (args.config or args.overrides or args.smoke):
            raise ConfigError(
                "--resume goes on with a run exactly as it was and takes no other option",
                fix="to start from its weights with other settings, use --config with --model.init RUN/release",
            )
        recipe = load_recipe(str(resume / "recipe.yaml") if resume else str(args.config), args.overrides, smoke=args.smoke)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.print_config:
        print(dump(recipe), end="")
        return 0

    from pretrain.runs import RUN_VARIABLE, name_run

    folder = resume or name_run(recipe)
    if launch.needed(recipe.train.devices):
        return launch.run_ranks(recipe.train.devices, words, {RUN_VARIABLE: str(folder)})

    from data_shards.errors import DataError
    from encoders.errors import ReleaseError
    from eval_zero_shot.errors import EvalError
    from pretrain.checkpoint import CheckpointError
    from pretrain.module import NonFiniteError
    from pretrain.training import train

    try:
        return train(recipe, folder, resume is not None)
    except (ConfigError, DataError, ReleaseError, EvalError, CheckpointError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
