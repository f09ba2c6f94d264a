"""Archives of reports: no secret, and what could not be had."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from virtlet.cli import archive
from virtlet.cli.archive import Archive, kept_annotations, scrubbed
from virtlet.cli.ending import CommandFailed

JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJzeXN0ZW0ifQ.c2lnbmF0dXJl"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n-----END OPENSSH PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"key:\n{KEY}\nafter", "key:\n[removed]\nafter"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter2", "[removed]"),
        (f"token of {JWT} here", "token of [removed] here"),
        ("Authorization: Bearer hunter2.abc", "Authorization: Bearer [removed]"),
        ("from https://me:hunter2@example.com/a", "from https://[removed]@example.com/a"),
        ("a?X-Amz-Signature=hunter2&b=1", "a?X-Amz-Signature=[removed]&b=1"),
        ("password: hunter2", "password: [removed]"),
        ('{"apiToken": "hunter2", "n": 1}', '{"apiToken": [removed], "n": 1}'),
        ("DB_PASSWORD='hunter 2' x", "DB_PASSWORD=[removed] x"),
        ("the pod has no password", "the pod has no password"),
        ("image https://example.com/a@sha256:00", "image https://example.com/a@sha256:00"),
    ],
)
def test_what_looks_like_a_secret_is_taken_out(text: str, shown: str) -> None:
    assert scrubbed(text) == shown


def test_of_annotations_that_are_not_known_to_hold_none_the_size_is_shown() -> None:
    shown = kept_annotations({"VirtletFlavor": "large", "VirtletSSHKeys": "ssh-rsa A"})
    assert shown == {
        "VirtletFlavor": "large",
        "VirtletSSHKeys": "[9 characters]",
    }


def test_what_cannot_be_had_is_a_line_and_the_rest_is_there(tmp_path: Path) -> None:
    def refused() -> str:
        raise CommandFailed("eve may not; password=hunter2")

    file = tmp_path / "report.tar.gz"
    with archive.create(str(file), io.BytesIO()) as output:
        made = Archive(output, "top")
        made.add("logs/a.log", refused)
        made.add("b.json", lambda: {"tokens": 1, "said": f"Bearer {JWT}"})
        made.add("c.txt", lambda: None)
        made.write("d.txt", "x" * (archive.LARGEST_TEXT + 3))
        made.close()
    with tarfile.open(file) as tar:
        texts = {e.name: f.read().decode() for e in tar if (f := tar.extractfile(e))}
    assert list(texts) == ["top/b.json", "top/d.txt", "top/problems.txt"]
    assert json.loads(texts["top/b.json"]) == {"tokens": 1, "said": "Bearer [removed]"}
    assert texts["top/d.txt"].startswith("[the first 3 characters are left out]")
    assert texts["top/problems.txt"] == "logs/a.log: eve may not; password=[removed]\n"


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    file = tmp_path / "report.tar.gz"
    file.write_text("mine")
    with pytest.raises(CommandFailed, match="is there already"):
        archive.create(str(file), io.BytesIO())
    assert file.read_text() == "mine"
