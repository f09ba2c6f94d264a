"""Settings and annotations about volumes."""

from virtlet.model.option import PATH, TRUE_ONLY, WORDS, Annotation, Option

KUBELET_ROOT_DIR = Option(
    field="kubeletRootDir",
    flag="--kubelet-root-dir",
    env="KUBELET_ROOT_DIR",
    kind=PATH,
    default="/var/lib/kubelet/pods",
    help="Where the kubelet keeps its pods' volumes",
)
RAW_DEVICES = Option(
    field="rawDevices",
    flag="--raw-devices",
    env="VIRTLET_RAW_DEVICES",
    kind=WORDS,
    default="loop*",
    help="Comma-separated globs, relative to /dev, of the block devices of the node that pods may "
    "have by their path; block volumes of Kubernetes need no entry",
)
CHOWN_MOUNTS = Annotation(
    name="VirtletChown9pfsMounts",
    kind=TRUE_ONLY,
    default=False,
    help="Give shared volumes, and all in them, to the emulator's user so that the guest can write "
    "there; never done to a hostPath volume",
)
