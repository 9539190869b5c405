"""Fine-tuning: the run whose weights another one starts from, and what is trained beside them."""
