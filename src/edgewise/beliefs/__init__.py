"""What is believed of each prompt: arrays over the pool. Predicting is a read; only `observe` writes."""
