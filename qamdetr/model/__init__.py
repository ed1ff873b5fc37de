"""The QAM-DETR network, one component per file; nothing here reads a file."""
