"""The npm packages that the data comes from: names, versions, licences, and how they are fetched."""

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One npm package, pinned."""

    name: str
    version: str
    licence: str
    author: str

    @property
    def folder(self) -> str:
        """Name of its folder below the work folder."""
        return self.name.removeprefix("@").replace("/", "-")


WORDS = Package("emojibase-data", "17.0.0", "MIT", "Miles Johnson")

# Iconify's packages of SVG drawings; the order is the order of the styles in the cache.
ICONIFY = (
    Package("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google"),
    Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google"),
    Package("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "Mozilla"),
    Package("@iconify-json/fluent-emoji", "1.2.7", "MIT", "Microsoft"),
    Package("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft"),
    Package("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft"),
    Package("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "Emoji One"),
    Package("@iconify-json/emojione-monotone", "1.2.1", "CC-BY-4.0", "Emoji One"),
)
FLUENT_3D = Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT", "Microsoft, packed by LobeHub")

# Never trained on: the drawings are Twemoji's.
HELD_OUT = Package("emoji-datasource-twitter", "16.0.0", "CC-BY-4.0", "Twitter and contributors")

ALL = (WORDS, *ICONIFY, FLUENT_3D, HELD_OUT)


def fetch(package: Package, work_dir: Path) -> Path:
    """Download and unpack a package with `npm pack`, once; returns its folder."""
    target = work_dir / "packages" / package.folder
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"{package.name}@{package.version}"],
        cwd=target.parent,
        check=True,
        capture_output=True,
        text=True,
    )
    archive = target.parent / packed.stdout.split()[-1]
    aside = target.with_suffix(".part")
    with tarfile.open(archive) as tar:
        tar.extractall(aside, filter="data")
    (aside / "package").rename(target)
    aside.rmdir()
    archive.unlink()
    return target
