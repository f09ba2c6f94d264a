"""Settings and annotations about volumes."""

from virtlet.model.option import PATH, TRUE_ONLY, WORDS, Annotation, Option

KUBELET_ROOT_DIR = Option(
    "kubeletRootDir",
    "--kubelet-root-dir",
    "KUBELET_ROOT_DIR",
    PATH,
    "/var/lib/kubelet/pods",
    "Where the kubelet keeps its pods' volumes",
)
RAW_DEVICES = Option(
    "rawDevices",
    "--raw-devices",
    "VIRTLET_RAW_DEVICES",
    WORDS,
    "loop*",
    "Comma-separated globs, relative to /dev, of the block devices of the node that pods may "
    "have by their path; block volumes of Kubernetes need no entry",
)
CHOWN_MOUNTS = Annotation(
    "VirtletChown9pfsMounts",
    TRUE_ONLY,
    False,
    "Give shared volumes, and all in them, to the emulator's user so that the guest can write "
    "there; never done to a hostPath volume",
)
