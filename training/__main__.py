"""`python -m training`: from package names to the checkpoint and its figures."""

import argparse
import json
from pathlib import Path

from training import packages
from training.concepts import read_concepts
from training.recipe import Recipe
from training.render import held_out_folder, held_out_images, training_images
from training.train import train

ROOT = Path(__file__).parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="end the first stage by then, with fewer steps if need be")
    parser.add_argument("--threads", type=int, help="torch's threads (default: all cores)")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--no-compile", action="store_true", help="slower steps, for machines without a C++ compiler")
    parser.add_argument(
        "--work-dir", type=Path, default=Path(".cache/training"), help="packages, pixels, interim model"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "worker/checkpoints/emoji-mini")
    parser.add_argument("--measure-only", action="store_true", help="figures of the model in --output, no training")
    options = parser.parse_args()

    folders = {package.folder: packages.fetch(package, options.work_dir) for package in packages.ALL}
    concepts = read_concepts(folders[packages.WORDS.folder])
    print(f"{len(concepts)} concepts", flush=True)
    if not options.measure_only:
        images = training_images(concepts, folders, options.work_dir / "pictures.npz")
        print(f"{len(images.pixels)} drawings", flush=True)
        recipe = Recipe(
            steps=options.steps,
            seed=options.seed,
            minutes=options.minutes,
            threads=options.threads,
            compile=not options.no_compile,
        )
        train(images, concepts, recipe, options.output, options.work_dir / "interim")

    from training.measure import measure

    held_out, shown = held_out_images(concepts, held_out_folder(folders))
    figures = measure(options.output, concepts, held_out, shown)
    print(json.dumps(figures, indent=2))
    (options.work_dir / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
