"""Entry of the web app, on a machine of one's own and on Hugging Face Spaces: `python app.py` serves http://127.0.0.1:7860."""

from __future__ import annotations

import os
import sys

# Before gradio is imported: neither it nor the hub client may report home.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import qamdetr.ui.gpu  # noqa: F401 - registers the function without which a Space on ZeroGPU does not start
from qamdetr.errors import QamDetrError
from qamdetr.ui.demo import build_demo, launch_options
from qamdetr.ui.settings import AppSettings
from qamdetr.ui.shared_retriever import SharedRetriever
from qamdetr.ui.training_plans import runs_folder

try:
    settings = AppSettings.from_environment()
except QamDetrError as error:
    sys.stderr.write(f"app.py: {error}\n")
    sys.exit(error.exit_status)

model = SharedRetriever(settings=settings, runs=runs_folder() if settings.training else None)
demo = build_demo(model, settings)

if __name__ == "__main__":
    if settings.warm_up:
        model.warm_up_in_background()
    demo.launch(**launch_options(settings))
