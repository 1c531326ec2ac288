"""From logits to tokens, on the device. `sampler.Sampler` is all that the runner needs."""
