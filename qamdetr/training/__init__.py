"""Training of QAM-DETR and of the pocket encoders."""
