"""Entry of the web app, on a machine of one's own and on Hugging Face Spaces: `python app.py` serves http://127.0.0.1:7860."""

from __future__ import annotations

import atexit
import os
import sys
from typing import TYPE_CHECKING

from qamdetr.errors import QamDetrError
from qamdetr.ui.process import UploadFolder, end_now, end_on_signals
from qamdetr.ui.settings import check_start, port_taken

if TYPE_CHECKING:
    import gradio as gr

    from qamdetr.ui.models import SharedRetriever
    from qamdetr.ui.settings import AppSettings

# Before gradio is imported: neither it nor the hub client may report home.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _say(line: object) -> None:
    sys.stderr.write(f"app.py: {line}\n")


def _prepare(uploads: UploadFolder) -> AppSettings:
    """Do what must be done before gradio is imported, and read the settings.

    Raises:
        QamDetrError: A setting that cannot be used.
    """
    atexit.register(uploads.remove)
    if __name__ == "__main__":
        end_on_signals(uploads.remove)
    uploads.use()
    import qamdetr.ui.gpu  # noqa: F401 - registers the function without which a Space on ZeroGPU does not start
    from qamdetr.ui.settings import AppSettings

    return AppSettings.from_environment()


def _build(settings: AppSettings) -> tuple[SharedRetriever, gr.Blocks]:
    from qamdetr.ui.models import SharedRetriever
    from qamdetr.ui.page import build_demo
    from qamdetr.ui.train.plans import runs_folder

    model = SharedRetriever(settings=settings, runs=runs_folder() if settings.training else None)
    return model, build_demo(model, settings)


def _serve() -> None:
    from qamdetr.ui.page import launch_options

    if settings.warm_up:
        model.warm_up_in_background()
    try:
        demo.launch(**launch_options(settings))
    except OSError:
        if settings.server_port is None:
            raise
        # Somebody else was faster since `check_start`, and the model is warming up.
        _say(port_taken(settings.server_port))
        uploads.remove()
        end_now(QamDetrError.exit_status)


try:
    note = check_start()
    uploads = UploadFolder.make()
    settings = _prepare(uploads)
except QamDetrError as error:
    _say(error)
    sys.exit(error.exit_status)

if note:
    _say(note)
model, demo = _build(settings)

if __name__ == "__main__":
    _serve()
