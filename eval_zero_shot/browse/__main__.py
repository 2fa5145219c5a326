"""Type a finding and look at the studies a model ranks first: a page for this machine alone.

python -m eval_zero_shot.browse RUN [--data SHARDS] [--port 0] [--host 127.0.0.1]

RUN is a training run (its release, and the shards it was trained on) or a release with --data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_shards.opening import add_tar_options
from eval_zero_shot.errors import EvalError
from eval_zero_shot.inputs import add_embedding, open_inputs, run_command

SURE = "--i-know-this-shows-patients"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line. Returns 0 when stopped by Ctrl-C, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m eval_zero_shot.browse", description="Type a finding, see the studies ranked: a local page."
    )
    add = parser.add_argument
    add(
        "run",
        metavar="RUN",
        help="training run folder, release folder, or a model that --model of other commands takes",
    )
    add("--data", metavar="DIR", help="shard set (folder or URL) or published .tar files (default: the run's own)")
    add("--split", default="test", metavar="NAME", help="split to browse (default: test)")
    add("--max-studies", type=int, metavar="N", help="browse a fixed choice of N studies")
    add("--port", type=int, default=0, metavar="N", help="default: 0, a free one")
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: %(default)s, this machine)",
    )
    add(SURE, dest="sure", action="store_true", help="needed with any --host that other machines can reach")
    add_embedding(parser)
    add_tar_options(parser)
    return run_command(parser, argv, _browse)


def _browse(args: argparse.Namespace) -> None:
    from eval_zero_shot.browse.server import BrowseServer, is_loopback
    from eval_zero_shot.browse.studies import Studies

    if not is_loopback(args.host):
        if not args.sure:
            raise EvalError(
                f"--host {args.host} can be reached from other machines",
                why="the page shows images and reports of patients, without encryption",
                fix="forward the port instead (ssh -L PORT:127.0.0.1:PORT), or, if everybody who can reach it may see "
                f"them, {SURE}",
            )
        print(
            f"warning: images and reports are sent without encryption to whoever reaches {args.host} and has the "
            "address below",
            file=sys.stderr,
        )
    args.model, args.data = resolve(args.run, args.data)
    inputs = open_inputs(args)
    rows = inputs.rows(args.split, args.max_studies)
    print(
        f"{len(rows)} studies of split {args.split}: their features are taken from the cache or made now",
        file=sys.stderr,
    )
    server = BrowseServer(Studies(inputs, rows), f"{inputs.name}, split {args.split}", args.host, args.port)
    print(f"{server.url}\nopen this address in a browser on this machine; Ctrl-C stops", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        server.server_close()


def resolve(run: str, data: str | None) -> tuple[str, str]:
    """(model, shards) of a training run folder, or of a release or model with `data`.

    Raises EvalError where the run has no release, or the shards cannot be known.
    """
    folder = Path(run).expanduser()
    recipe = folder / "recipe.yaml"
    if not recipe.is_file():
        if data is None:
            raise EvalError(f"no --data for {run}", why="it is no training run, which names its shards", fix="give it")
        return run, data
    if not (folder / "release").is_dir():
        raise EvalError(
            "this run has no release yet", why="nothing can be asked", fix="wait for its end, or release a checkpoint"
        )
    return str(folder / "release"), data or _shards_of(recipe)


def _shards_of(recipe: Path) -> str:
    import yaml

    try:
        told: Any = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
        source, cache = told["source"], told.get("cache", "~/.cache/voxclip")
        if source["kind"] == "shards":
            return str(source["path"])
        if source["kind"] == "phantom":
            from data_shards.phantom.cache import cache_dir

            made = cache_dir(cache, source["studies"], source["seed"])
            if (made / "manifest.json").is_file():
                return str(made)
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        pass
    raise EvalError(
        "the shards of this run cannot be known from its recipe, or are not there any more",
        why="there would be nothing to look at",
        fix="name them: --data DIR (published tars with the options that the recipe has)",
    )


if __name__ == "__main__":
    sys.exit(main())
