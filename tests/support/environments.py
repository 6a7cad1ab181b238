"""Virtual environments that share what is installed here, by links, so that nothing is fetched or copied."""

import sysconfig
import venv
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))


def make_environment(folder: Path, without: tuple[str, ...] = ()) -> Path:
    """The Python of an environment that has what this one has, but for the packages `without` and this project."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    hidden = ("_editable_impl", "lightning_psp", "__pycache__")
    for path in PACKAGES.iterdir():
        is_hidden = path.name.startswith(hidden) or path.name.partition("-")[0] in without
        if not is_hidden and not (packages / path.name).exists():
            (packages / path.name).symlink_to(path)
    return folder / "bin" / "python"
