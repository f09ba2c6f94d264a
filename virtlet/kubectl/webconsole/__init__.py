"""The web console: a page on the user's own machine; see docs/guide/webconsole.md."""
