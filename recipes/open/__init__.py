"""What made `qam-detr-open`: other joint spaces to train it on and to leave out (`spaces`), and the proof that it holds there (`proof`)."""
