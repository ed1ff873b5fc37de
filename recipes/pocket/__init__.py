"""The pocket encoders: text, audio, mixtures, sound bank."""
