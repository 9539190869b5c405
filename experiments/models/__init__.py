"""What is trained: the built-in Transformer, a model of Hugging Face, or any module."""
