"""A local page in the browser, on which a person hears what a model of piano music writes."""

import socket
from pathlib import Path

from quintet.errors import UserError
from quintet.libraries import require

_PAGE = Path(__file__).with_name("page.py")
_LARGEST_FILE = 16  # MB; a MIDI file of an hour of music has less than one


def serve(run: str, checkpoint: str, host: str, port: int, browser: bool) -> None:
    """Serve the page of ``run`` on http://host:port until the process is interrupted; ``browser`` opens it.

    The page loads nothing from other machines and sends no statistics. Raises UserError if the extra is missing, the
    run has no model of music, or the port is taken.
    """
    bootstrap = require("streamlit.web.bootstrap", "play", "quintet play")
    from quintet.play.player import player

    player(run, checkpoint)  # raises here what is wrong with the run; the page then finds the model loaded
    port = _free_port(host, port)
    options = {
        "server_address": host,
        "server_port": port,
        "server_headless": not browser,
        "server_fileWatcherType": "none",
        "server_maxUploadSize": _LARGEST_FILE,
        "browser_gatherUsageStats": False,
        "client_toolbarMode": "minimal",
        "global_developmentMode": False,
    }
    bootstrap.load_config_options(options)
    bootstrap.run(str(_PAGE), False, [run, checkpoint], options)


def _free_port(host: str, port: int) -> int:
    """Return ``port``, or any free one if it is 0. Raises UserError if it is taken."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            return trial.getsockname()[1]
    except OSError as error:
        raise UserError(
            f"--port {port}: cannot be used on {host} ({error.strerror}); name another, or 0 for any that is free"
        ) from None
