"""What an image may cost the node."""

from attrs import frozen


@frozen
class ImageLimits:
    """Bounds for one image; all in bytes."""

    size: int = 64 << 30
    """Largest image file."""
    virtual_size: int = 1 << 40
    """Largest disk that an image may declare."""
    spare: int = 64 << 20
    """Free space that a download leaves on the file system, so that VMs can go on writing."""

    @classmethod
    def of(cls, size: int) -> "ImageLimits":
        """The limits that follow from the largest image file."""
        return cls(size=size, virtual_size=16 * size)
