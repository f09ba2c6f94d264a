"""The seed: the disk with the cloud-init data of one VM, an ISO 9660 image."""

import io
import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from virtlet.errors import InvalidArgument
from virtlet.host.files import new_disk_file
from virtlet.model.cloudinit import CloudInit
from virtlet.model.disk import Disk
from virtlet.model.vm import Vm
from virtlet.plugins.cloudinit.datasources import (
    dump,
    meta_data_json,
    network_config,
    network_data_json,
)
from virtlet.plugins.cloudinit.seed_annotations import IMAGE_TYPE

FILE_NAME = "seed.iso"


def write_iso(descriptor: int, label: str, files: Mapping[str, bytes]) -> None:
    """Write an image with Rock Ridge and Joliet names, so that every guest sees the real ones.

    Args:
        descriptor: an empty file, open for writing.
        label: the volume's name.
        files: path without leading slash to content.
    """
    import pycdlib  # takes 30 ms, so not at start-up

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


def write_seed(vm: Vm, cloud_init: CloudInit, uid: int, gid: int) -> Disk:
    """Write `seed.iso` in the VM's directory, owned by the emulator's user, mode 0600.

    Raises:
        InvalidArgument: the pod wants a config drive, which cannot carry another plugin's
            network configuration.
    """
    if IMAGE_TYPE.of(vm.pod) == "configdrive":
        label, files = "config-2", _config_drive(vm, cloud_init)
    else:
        label, files = "cidata", _no_cloud(cloud_init)
    path = vm.directory / FILE_NAME
    with new_disk_file(path, uid, gid) as descriptor:
        write_iso(descriptor, label, files)
    return Disk(path=path, format="raw", readonly=True, kind="cdrom")


def _no_cloud(cloud_init: CloudInit) -> dict[str, bytes]:
    files = {
        "meta-data": _json(cloud_init.meta_data),
        "user-data": user_data_file(cloud_init.user_data, cloud_init.script),
    }
    if cloud_init.network_config is not None:
        files["network-config"] = _json(cloud_init.network_config)
    return files


def _config_drive(vm: Vm, cloud_init: CloudInit) -> dict[str, bytes]:
    files = {
        "meta_data.json": _json(meta_data_json(cloud_init.meta_data)),
        "user_data": user_data_file(cloud_init.user_data, cloud_init.script),
    }
    if cloud_init.network_config is not None:
        if cloud_init.network_config != network_config(vm.network):
            raise InvalidArgument(
                f"annotation {IMAGE_TYPE.name}: a config drive cannot carry the network "
                "configuration that another plugin of the handler gives: use nocloud"
            )
        files["network_data.json"] = _json(network_data_json(vm.network))
    return {f"openstack/latest/{name}": content for name, content in files.items()}


def user_data_file(document: Mapping[str, Any], script: str | None) -> bytes:
    """user-data as one file: cloud-config, a script, or both as a MIME message."""
    cloud_config = f"#cloud-config\n{dump(dict(document))}\n"
    if script is None:
        return cloud_config.encode()
    if not document:
        return script.encode()
    # Imported late, as few pods have both and the modules take half a megabyte.
    from email.mime.multipart import MIMEMultipart
    from email.mime.text import MIMEText

    message = MIMEMultipart()
    message.attach(MIMEText(cloud_config, "cloud-config", "utf-8"))
    message.attach(MIMEText(script, "x-shellscript", "utf-8"))
    return message.as_bytes()


def _json(document: Mapping[str, Any]) -> bytes:
    return f"{dump(dict(document))}\n".encode()
