"""The program that is a VM's TPM."""

import os
from pathlib import Path

import pytest
from attrs import evolve

from tests.plugins.domain_xml.test_render import plain
from virtlet.errors import FailedPrecondition
from virtlet.model.vm import Machine
from virtlet.plugins.libvirt_qemu.tpm import backends


def _machine(directory: Path) -> Machine:
    machine = plain()
    vm = evolve(machine.vm, directory=directory)
    return evolve(machine, vm=vm, flavor=evolve(machine.flavor, tpm=True))


def test_a_machine_without_a_tpm_needs_no_program() -> None:
    assert backends(plain(), 0, 0, places="/nowhere") == ()


def test_without_swtpm_the_error_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="swtpm is missing.*install the package swtpm"):
        backends(_machine(tmp_path), os.getuid(), os.getgid(), places="/nowhere")
    assert list(tmp_path.iterdir()) == []


def test_the_state_is_in_the_vms_directory_for_its_user_alone(tmp_path: Path) -> None:
    (program,) = backends(_machine(tmp_path), os.getuid(), os.getgid())
    assert (program.uid, program.gid, program.capabilities) == (os.getuid(), os.getgid(), ())
    assert f"dir={tmp_path}/tpm,mode=0600" in program.argv
    assert (tmp_path / "tpm").stat().st_mode & 0o777 == 0o700
