"""What is trained: a base made trainable, its adapter begun and saved."""
