"""The sound bank: the captioned clips and backgrounds that the pocket encoders and the training scenes are made of."""
