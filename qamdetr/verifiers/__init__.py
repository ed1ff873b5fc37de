"""Verifiers: second opinions on the decoder's best candidates (report, section 2.3). They score; boundaries are not their business."""
