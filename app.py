"""Entry of the web app, on a machine of one's own and on Hugging Face Spaces: `python app.py` serves http://127.0.0.1:7860."""

from __future__ import annotations

import os

# Before gradio is imported: neither it nor the hub client may report home.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from qamdetr.ui.demo import build_demo, launch_options
from qamdetr.ui.shared_retriever import SharedRetriever

model = SharedRetriever()
demo = build_demo(model)

if __name__ == "__main__":
    model.warm_up_in_background()
    demo.launch(**launch_options())
