"""The hooks of the fetcher."""

from virtlet import hookimpl
from virtlet.model.image import Credentials, FetchedImage, ImageSource, Staging


class Plugin:
    """Fetches file://, http:// and https:// addresses."""

    VIRTLET_HOOK_API = 1

    @hookimpl
    def virtlet_fetch_image(
        self, source: ImageSource, credentials: Credentials, staging: Staging
    ) -> FetchedImage | None:
        """Fetch what is at an address of these schemes."""
        scheme = source.url.partition("://")[0]
        # Imported when needed: a manager that pulls nothing starts quicker and stays smaller.
        if scheme == "file":
            from virtlet.plugins.image_http.local import fetch_file

            return fetch_file(source, staging)
        if scheme in ("http", "https"):
            from virtlet.plugins.image_http.download import download

            return download(source, credentials, staging)
        return None
