"""Where every byte of a training step goes: by formula (`formula`), and measured (`measure`)."""
