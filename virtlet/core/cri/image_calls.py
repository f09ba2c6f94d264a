"""The image calls."""

from collections.abc import Mapping, Sequence

from virtlet.core.cri import replies, requests
from virtlet.core.cri.calls import Call, CallClient, CallKind
from virtlet.core.cri.replies import streamed
from virtlet.core.lifecycle import image_handlers
from virtlet.core.lifecycle.context import Context
from virtlet.cri import api_pb2 as cri
from virtlet.errors import InvalidArgument
from virtlet.images.layout import FilesystemUsage, measure
from virtlet.model.image import Image, shown_name
from virtlet.model.reference import Reference, parse_reference


class ImageCalls:
    """Serves the image store."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def calls(self) -> list[Call]:
        """The calls served here."""
        listed = Call("ImageService.ListImages", CallKind.LOOK, self.list)
        return [
            listed,
            streamed(
                "ImageService.StreamImages",
                CallKind.LOOK,
                lambda request: self.list(request).images,
                lambda items: cri.StreamImagesResponse(images=items),
            ),
            Call("ImageService.ImageStatus", CallKind.LOOK, self.status),
            Call("ImageService.PullImage", CallKind.WORK, self.pull, attended=True),
            Call("ImageService.RemoveImage", CallKind.WORK, self.remove),
            Call("ImageService.ImageFsInfo", CallKind.LOOK, self.fs_info),
        ]

    def list(self, request: cri.ListImagesRequest) -> cri.ListImagesResponse:
        """ListImages."""
        wanted = request.filter.image.image
        store = self._context.images.store
        if wanted:
            found = store.find(parse_reference(wanted))
            images = [found] if found else []
        else:
            images = [*store.list()]
        return cri.ListImagesResponse(images=[self._item(image) for image in images])

    def _item(self, image: Image) -> cri.Image:
        return replies.image_item(image, pinned=self._context.images.store.pinned(image))

    def status(self, request: cri.ImageStatusRequest) -> cri.ImageStatusResponse:
        """ImageStatus: empty when the image is not there; verbose tells of pulls all the same."""
        image = self._context.images.store.find(_reference(request.image))
        if image is None:
            pulls = replies.pulls_info(self._pulls()) if request.verbose else {}
            return cri.ImageStatusResponse(info=pulls)
        return cri.ImageStatusResponse(
            image=self._item(image),
            info=self._info(image) if request.verbose else {},
        )

    def _pulls(self) -> Sequence[Mapping[str, object]]:
        """How far the pulls under way are."""
        return [
            {
                "name": pull.name,
                "reference": shown_name(str(pull.reference)),
                "bytes": pull.size,
                "total": pull.total,
            }
            for pull in self._context.images.progress()
        ]

    def _info(self, image: Image) -> dict[str, str]:
        store = self._context.images.store
        pulls = self._pulls()
        handler = store.handler(parse_reference(image.id))
        return replies.image_info(image, handler, store.annotations(image.id), pulls)

    def pull(self, request: cri.PullImageRequest, caller: CallClient) -> cri.PullImageResponse:
        """PullImage; broken off when the client goes away and nobody else waits for the image."""
        image = image_handlers.pull(
            self._context,
            _reference(request.image),
            requests.credentials(request.auth),
            request.image.runtime_handler,
            caller.waits,
            requests.pulling_pod(request.sandbox_config),
        )
        return cri.PullImageResponse(image_ref=image.id)

    def remove(self, request: cri.RemoveImageRequest) -> cri.RemoveImageResponse:
        """RemoveImage, by id or a name that was pulled: the whole image, as CRI means it, with all
        its names; nothing to do for an unknown one."""
        image_handlers.remove(self._context, _reference(request.image))
        return cri.RemoveImageResponse()

    def fs_info(self, request: cri.ImageFsInfoRequest) -> cri.ImageFsInfoResponse:
        """ImageFsInfo: the images, and the disks of VMs."""
        volumes = measure(self._context.paths.vms)
        return cri.ImageFsInfoResponse(
            image_filesystems=[_usage(self._context.images.store.usage())],
            container_filesystems=[_usage(volumes)],
        )


def _reference(spec: cri.ImageSpec) -> Reference:
    if not spec.image:
        raise InvalidArgument("the request names no image")
    return parse_reference(spec.image)


def _usage(usage: FilesystemUsage) -> cri.FilesystemUsage:
    return cri.FilesystemUsage(
        timestamp=replies.now(),
        fs_id=cri.FilesystemIdentifier(mountpoint=str(usage.mountpoint)),
        used_bytes=cri.UInt64Value(value=usage.used_bytes),
        inodes_used=cri.UInt64Value(value=usage.inodes_used),
    )
