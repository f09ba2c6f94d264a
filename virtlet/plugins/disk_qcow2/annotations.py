"""What a pod may say about its root disk."""

from virtlet.model.option import Annotation, Kind


def _refuse(text: str) -> str:
    if text:
        raise ValueError(
            "putting files of a ConfigMap or Secret on the root disk before boot is not served "
            "yet: mount the ConfigMap or Secret, and cloud-init writes its files at first boot"
        )
    return text


FILES_FROM = Annotation(
    name="VirtletFilesFromDataSource",
    kind=Kind(name="configmap/NAME or secret/NAME", parse=_refuse),
    default="",
    help="Files put on the root disk before boot; refused until the manager can read objects of "
    "Kubernetes",
)
