"""What of an image's name may be shown, in both programs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criproxy import image_names
from virtlet.model.image import shown_name

DIGEST = "@sha256:" + "a1" * 32


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("tiny", "tiny"),
        ("virtlet.cloud/example.com:5000/x:v1", "virtlet.cloud/example.com:5000/x:v1"),
        (f"registry.k8s.io/pause:3.10{DIGEST}", f"registry.k8s.io/pause:3.10{DIGEST}"),
        ("file:///var/lib/x.qcow2", "file:///var/lib/x.qcow2"),
        (
            "virtlet.cloud/https://bob:s3cret@host/disk.img?token=s3cret",
            "virtlet.cloud/https://host/disk.img",
        ),
        ("https://host/disk.img#s3cret", "https://host/disk.img"),
        ("https://bob:p@s3cret@host:8443/x", "https://host:8443/x"),
        (f"https://bob:s3cret@host/x?token=s3cret{DIGEST}", f"https://host/x{DIGEST}"),
        ("host/x?mirror=https://bob:s3cret", "host/x"),
        # What is a password's and what is not cannot be told.
        ("https://bob:s3cret/s3cret@host/x", "https://…"),
        ("https://bob:s3cret?s3cret@host/x", "https://…"),
        ("https://bob:s3cret@host/x?mail=a@s3cret", "https://…"),
        ("virtlet.cloud/bob:s3cret@host/x", "…"),
        (f"bob:s3cret/y@host/x{DIGEST}", f"…{DIGEST}"),
    ],
)
def test_a_password_or_token_in_a_name_is_not_shown(name: str, shown: str) -> None:
    assert shown_name(name) == image_names.shown_name(name) == shown


@given(st.text("ab:/@?#.\n"))
def test_both_programs_show_the_same_of_any_text(name: str) -> None:
    assert shown_name(name) == image_names.shown_name(name)
