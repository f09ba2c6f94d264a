"""Writing the ISO 9660 image that cloud-init reads."""

import io
import os
from collections.abc import Mapping
from pathlib import PurePosixPath


def write_iso(descriptor: int, label: str, files: Mapping[str, bytes]) -> None:
    """Write an image with Rock Ridge and Joliet names, so that every guest sees the real ones.

    Args:
        descriptor: an empty file, open for writing.
        label: the volume's name.
        files: path without leading slash to content.
    """
    import pycdlib  # takes 30 ms, which start-up can do without

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=label)
    short: dict[PurePosixPath, str] = {PurePosixPath("."): ""}
    for number, path in enumerate(map(PurePosixPath, files)):
        for parent in reversed(path.parents):
            if parent not in short:
                short[parent] = f"{short[parent.parent]}/D{len(short)}"
                iso.add_directory(short[parent], rr_name=parent.name, joliet_path=f"/{parent}")
        content = files[str(path)]
        iso.add_fp(
            io.BytesIO(content),
            len(content),
            f"{short[path.parent]}/F{number}.;1",
            rr_name=path.name,
            joliet_path=f"/{path}",
        )
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        iso.write_fp(file)
    iso.close()
