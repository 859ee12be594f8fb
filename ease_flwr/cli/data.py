"""`ease data`: look at image-caption sets on this machine, decode them once, give them topics, deal them to clients."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ease_flwr import config
from ease_flwr.cli.shared import EXPERIMENT, here, mistakes

if TYPE_CHECKING:
    from ease_flwr.data.photographs import Photographs

data = typer.Typer(no_args_is_help=True, help="Image-caption sets on this machine.")
LAST = 2**64 - 1
"""The largest seed that torch takes."""
SET = Annotated[list[str] | None, typer.Option(help="key=value of the experiment, data.root=DIR among them; may be repeated.")]
NOBODY = {"forget.scenario": "client", "forget.targets": "client-0", "forget.then": ""}
"""What is to be forgotten plays no part here; the experiment's own may be of more clients than are asked for."""
SHOWN = 20
"""Problems, and rows that are left out for one reason, that are named one by one."""
SEED = Annotated[int | None, typer.Option(help="Default: the experiment's own.", min=0, max=LAST)]


@data.command("check")
def data_check(
    root: Annotated[Path, typer.Argument(help="Folder with images/ and an index.")],
    every: Annotated[bool, typer.Option("--all", help="Name everything, not the first 20 of a kind.")] = False,
) -> None:
    """Read every image and every caption of a folder; say what is wrong with it, what is left out, and how many there are."""
    with mistakes("data check"):
        from ease_flwr.data import formats, published

        there = config.absolute(str(root), "ROOT")
        found = formats.check(there)
        note = published.incomplete(there, found.counts)
    first = slice(None if every else SHOWN)
    for problem in found.problems[first]:
        print(problem)
    for why, places in found.left.items():
        more = ", ..." if len(places[first]) < len(places) else ""
        print(f"left out, {why}: {len(places)} ({', '.join(places[first])}{more})")
    if found.drawn:
        print(f"{found.drawn} images have no split in the index: the name of each draws one")
    print("rows: " + ", ".join(f"{count} {what}" for what, count in found.totals.items()))
    print(", ".join(f"{count} {what}" for what, count in found.counts.items()))
    if note:
        print(note)
    if found.problems:
        rest = len(found.problems) - len(found.problems[first])
        more = f", the first {SHOWN} are above, --all names the others" if rest else ""
        print(f"ease data check: {len(found.problems)} problems{more}")
        raise typer.Exit(1)


@data.command("ids")
def data_ids(
    root: Annotated[Path, typer.Argument(help="Folder with images/ and an index.")],
    client: Annotated[str, typer.Option(help="What this host calls itself.")],
    match: Annotated[
        list[str] | None, typer.Option(help="Text in the name of the picture or in a caption; may be repeated. None: all.")
    ] = None,
    picture: Annotated[
        list[str] | None, typer.Option(help="Name of a picture in the index, as it stands there; * for any letters.")
    ] = None,
    label: Annotated[str, typer.Option(help="Of the pairs.")] = "",
    names: Annotated[bool, typer.Option("--names", help="Add the names of the pictures as remarks.")] = False,
) -> None:
    """Print ids of training pairs on this host, CLIENT/id:HEX a line: for `ease forget --ids FILE`.

    An id is a digest of picture and captions: it says nothing about them, and does not move when data change.
    """
    with mistakes("data ids"):
        from ease_flwr.data import formats, pairs

        entries = formats.read_index(config.absolute(str(root), "ROOT"))["train"]
        alike = partial(unicodedata.normalize, "NFC")  # of spellings that look alike one
        wanted = [alike(m).casefold() for m in match or [""]]
        pictures = [alike(p) for p in picture or ()]
        chosen = [
            e
            for e in entries
            if (not label or e.label == config.canonical(label))
            and (not pictures or any(p == alike(e.name) or fnmatchcase(alike(e.name), p) for p in pictures))
            and any(m in alike(s).casefold() for m in wanted for s in (e.name, *e.captions))
        ]
        if not chosen:
            raise config.ConfigError(f"{root}: no training pair matches: look for less, or see `ease data check {root}`")
        for e in chosen:
            print(f"{client}/{pairs.pair_id(e.content(), e.captions)}" + (f"  # {e.name}" if names else ""))
    shown = ", ".join(e.name for e in chosen[:5]) + (", ..." if len(chosen) > 5 else "")
    print(f"{len(chosen)} of {len(entries)} training pairs: {shown}", file=sys.stderr)


@data.command("demo")
def data_demo(
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    seed: Annotated[int, typer.Option(help="Draws the pictures.", min=0)] = 0,
) -> None:
    """Write a small set in the layout of one's own data; `ease run demo --set data.root=FOLDER` learns and forgets with it."""
    with mistakes("data demo"):
        from ease_flwr.data import demo

        print(f"{demo.write(folder, seed)} pairs in {folder}: ease run demo --set data.root={folder}")


@data.command("prepare")
def data_prepare(experiment: EXPERIMENT, set: SET = None, seed: SEED = None) -> None:
    """Decode and resize all images of an experiment into data.cache; goes on where it was ended, mends what is damaged."""
    with mistakes("data prepare"):
        _, world = _photographs(experiment, set, seed)
        if not world.config.cache:
            raise config.ConfigError("data.cache is empty: say where decoded images are kept, --set data.cache=DIR")
        world.prepare(lambda line: print(line, flush=True))
        print(f"in {world.config.cache}, checksums fit")


@data.command("cluster")
def data_cluster(
    experiment: EXPERIMENT,
    to: Annotated[Path, typer.Option(help="JSON file to write; data.labels=FILE uses it.", callback=here)],
    set: SET = None,
    seed: SEED = None,
    clusters: Annotated[int, typer.Option(help="How many topics.", min=2)] = 20,
) -> None:
    """Give every image a topic, by k-means on the base model's caption embeddings, for sets that have no labels."""
    with mistakes("data cluster"):
        _to(to)
        found, world = _photographs(experiment, set, seed)
        from ease_flwr.data.topics import topics

        entries = [e for split in world.splits.values() for e in split]
        names = topics(entries, found.model, clusters, found.seed)
        _write_names(to, names)
        print(f"{len(names)} images, {len({*names.values()})} topics in {to}")


@data.command("deal")
def data_deal(
    experiment: EXPERIMENT,
    to: Annotated[Path, typer.Option(help="JSON file to write; data.partition=file data.parts=FILE uses it.", callback=here)],
    set: SET = None,
    seed: SEED = None,
) -> None:
    """Write down which client gets which images, by the experiment's data.partition."""
    with mistakes("data deal"):
        _to(to)
        _, world = _photographs(experiment, set, seed)
        train = world.splits["train"]
        parts = {c: [train[i].name for i in part] for c, part in zip(world.clients, world.parts, strict=True)}
        _write_names(to, parts)
        print(", ".join(f"{c} {len(part)}" for c, part in parts.items()), f"in {to}")


def align(
    image: Annotated[Path, typer.Option(help=".safetensors file of a timm model without its classifier.", callback=here)],
    image_model: Annotated[str, typer.Option(help="timm's name of that model.")],
    text: Annotated[Path, typer.Option(help="Folder of a Hugging Face text model, with its tokenizer.", callback=here)],
    root: Annotated[Path, typer.Option(help="Folder with images/ and an index.", callback=here)],
    to: Annotated[Path, typer.Option(help=".safetensors file to write; its open_clip config goes beside it.", callback=here)],
    split: Annotated[str, typer.Option(help="Photographs to train on; keep them out of the federation.")] = "base",
    size: Annotated[int, typer.Option(help="Side of the photographs in pixels.", min=8)] = 160,
    width: Annotated[int, typer.Option(help="Dimension of the embeddings.", min=2)] = 256,
    context: Annotated[int, typer.Option(help="Tokens of a caption, at most.", min=4)] = 32,
    epochs: Annotated[int, typer.Option(min=1)] = 30,
    seed: Annotated[int, typer.Option(help="Decides the projections at the start and all orders.", min=0, max=LAST)] = 0,
) -> None:
    """Make a base model of two pretrained towers: both stay frozen, a linear projection behind each is trained."""
    with mistakes("align"):
        if to.suffix != ".safetensors" or not to.parent.is_dir():
            raise config.ConfigError(f"--to {to}: give the name of a .safetensors file in a folder that is there")
        from ease_flwr.data import align as aligning

        towers = aligning.Towers(image, image_model, text, size, width, context)
        found = aligning.align(towers, root, split, to, (seed, epochs), lambda line: print(line, flush=True))
    print(f"R@1 {found:.1f} % on the test photographs, which it has not seen")


def make_base(
    path: Annotated[Path, typer.Option(help="File to write.", callback=here)] = config.PACKAGE / "data" / "personas-base.json",
    seed: Annotated[int, typer.Option(min=0, max=LAST)] = 0,
    scenes: Annotated[int, typer.Option(help="Base scenes to train on.", min=512)] = 16000,
    epochs: Annotated[int, typer.Option(min=1)] = 12,
) -> None:
    """Train the base model of the built-in world on drawn scenes and write it as one JSON file (about five
    minutes on one core)."""
    with mistakes("make-base"):
        if not path.parent.is_dir():
            raise config.ConfigError(f"no folder {path.parent}")
    from ease_flwr.data.make_base import make_base as train

    recall = train(path, seed, scenes, epochs, lambda line: print(line, flush=True))
    print(f"R@1 {recall:.1f} % on 500 unseen scenes; {path.stat().st_size} bytes in {path}")


def _photographs(experiment: str, set: list[str] | None, seed: int | None) -> tuple[config.Experiment, Photographs]:
    """An experiment with photographs, and its world. Raises ConfigError for another one."""
    found, _ = config.asked(experiment, set or [], seed, **NOBODY)
    if found.data.kind != "photographs":
        raise config.ConfigError(f"experiment {experiment} has {found.data.kind}, not photographs from disk")
    from ease_flwr.data.photographs import load

    return found, load(config.pictures(found), found.seed)


def _to(file: Path) -> None:
    """Raises ConfigError where nothing can be written to a file, before anything is computed for it."""
    if not file.parent.is_dir():
        raise config.ConfigError(f"--to {file}: no folder {file.parent}")
    if file.is_dir():
        raise config.ConfigError(f"--to {file}: this is a folder, name a file")


def _write_names(file: Path, names: Mapping[str, Any]) -> None:
    from ease_flwr.store.files import write_json

    write_json(file, {"names": names})
