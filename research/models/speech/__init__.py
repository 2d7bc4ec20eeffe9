"""Speech recognizers: listeners (encoders), spellers (decoders), and the two together."""
